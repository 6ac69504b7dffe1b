"""A checkpoint: all tensors in one safetensors file, the rest in JSON. Nothing in it can run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from visrec.training.loop import Progress, Trainer

_TENSORS, _STATE = "state.safetensors", "state.json"


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Writes weights, their average, the best, optimiser, schedule and progress."""
    moments = trainer.optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {
        **{f"model.{name}": value for name, value in trainer.model.state_dict().items()},
        **{f"average.{name}": value for name, value in _averaged(trainer).items()},
        **{f"best.{name}": value for name, value in trainer.best.items()},
        **{f"adam.{i}.{key}": v for i, state in moments.items() for key, v in state.items()},
    }
    save_file(
        {name: value.contiguous().cpu() for name, value in tensors.items()}, folder / _TENSORS
    )
    state = {
        "progress": asdict(trainer.progress),
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "plateau": {k: v for k, v in trainer.scheduler.state_dict().items() if _is_plain(v)},
    }
    (folder / _STATE).write_text(json.dumps(state))


def restore_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Puts a trainer back where `save_checkpoint` found it."""
    tensors = load_file(folder / _TENSORS, device=str(trainer.context.device))
    state = json.loads((folder / _STATE).read_text())
    trainer.model.load_state_dict(_below("model.", tensors))
    if averaged := _below("average.", tensors):
        trainer.eval_model.load_state_dict(averaged)
    trainer.best = _below("best.", tensors)
    optimizer = trainer.optimizer.state_dict()
    for name, value in _below("adam.", tensors).items():
        index, _, key = name.partition(".")
        # Adam counts its steps on the CPU, wherever the moments are.
        optimizer["state"].setdefault(int(index), {})[key] = value.cpu() if key == "step" else value
    for group in optimizer["param_groups"]:
        group["lr"] = state["learning_rate"]
    trainer.optimizer.load_state_dict(optimizer)
    trainer.scheduler.load_state_dict(state["plateau"])
    trainer.progress = _progress(state["progress"])


def read_progress(folder: Path) -> Progress:
    """Where the trainer stood: says which of its two fits a checkpoint is of."""
    return _progress(json.loads((folder / _STATE).read_text())["progress"])


def _progress(state: dict[str, Any]) -> Progress:
    chosen = state["chosen"] and Progress(**state["chosen"])
    return Progress(**{**state, "chosen": chosen})


def _averaged(trainer: Trainer) -> dict[str, Tensor]:
    """The averaged weights, where they are not the model's own."""
    if trainer.eval_model is trainer.model:
        return {}
    averaged: dict[str, Tensor] = trainer.eval_model.state_dict()
    return averaged


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | type(None)) or (
        isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    )
