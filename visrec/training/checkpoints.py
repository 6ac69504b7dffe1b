"""Checkpoints: tensors in a safetensors file, the rest in JSON. Loading one runs no code."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visrec.scratch import scratch_errors
from visrec.training.loop import Progress, Trainer

_TENSORS, _STATE = "state.safetensors", "state.json"


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Writes the weights, their average, the best weights, optimizer, schedule and progress.

    Args:
        trainer: what is written.
        folder: a temporary one.

    Raises:
        InputError: its disk has no room.
    """
    optimizer_state = trainer.optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {
        **{f"model.{name}": value for name, value in trainer.model.state_dict().items()},
        **{f"ema.{name}": value for name, value in _averaged_weights(trainer).items()},
        **{f"best.{name}": value for name, value in trainer.best_weights.items()},
        **{
            f"adam.{i}.{key}": v for i, state in optimizer_state.items() for key, v in state.items()
        },
    }
    contiguous = {name: value.contiguous().cpu() for name, value in tensors.items()}
    state = {
        "progress": asdict(trainer.progress),
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "scheduler": {k: v for k, v in trainer.scheduler.state_dict().items() if _is_json(v)},
    }
    with scratch_errors("a checkpoint", SafetensorError):
        save_file(contiguous, folder / _TENSORS)
        (folder / _STATE).write_text(json.dumps(state))


def restore_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Puts a trainer into the state that `save_checkpoint` wrote."""
    tensors = load_file(folder / _TENSORS, device=str(trainer.context.device))
    state = json.loads((folder / _STATE).read_text())
    trainer.model.load_state_dict(_with_prefix("model.", tensors))
    if averaged := _with_prefix("ema.", tensors):
        trainer.eval_model.load_state_dict(averaged)
    trainer.best_weights = _with_prefix("best.", tensors)
    optimizer = trainer.optimizer.state_dict()
    for name, value in _with_prefix("adam.", tensors).items():
        index, _, key = name.partition(".")
        optimizer["state"].setdefault(int(index), {})[key] = value
    for group in optimizer["param_groups"]:
        group["lr"] = state["learning_rate"]
    trainer.optimizer.load_state_dict(optimizer)
    trainer.scheduler.load_state_dict(state["scheduler"])
    trainer.progress = _progress(state["progress"])


def read_progress(folder: Path) -> Progress:
    """The progress of a checkpoint; that of a refit has a `first_fit_progress`."""
    return _progress(json.loads((folder / _STATE).read_text())["progress"])


def _progress(state: dict[str, Any]) -> Progress:
    first = state["first_fit_progress"]
    return Progress(**{**state, "first_fit_progress": None if first is None else _progress(first)})


def _averaged_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The averaged weights; empty if weights are not averaged."""
    if trainer.eval_model is trainer.model:
        return {}
    averaged: dict[str, Tensor] = trainer.eval_model.state_dict()
    return averaged


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _is_json(value: object) -> bool:
    return isinstance(value, str | int | float | bool | type(None)) or (
        isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    )
