"""What a sweep keeps of its trials: a record each, a table of all, and a picture of it."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from visrec.config import plain
from visrec.storage.store import Store, to_json
from visrec.tuning.spaces import Choice, Range, Space, Values

Status = Literal["finished", "stopped", "diverged", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
Epoch = Mapping[str, float]

# The two keys whose plane is drawn where both are searched.
_PLANE = ("train.learning_rate", "train.weight_decay")


@dataclass(frozen=True)
class Record:
    """One trial that is over.

    Args:
        number: its number in the sweep; 0 is the default configuration.
        values: what it had for each searched key.
        history: one entry an epoch, as the trainer keeps them.
        status: finished by itself, stopped early by the scheduler, diverged to numbers that are
            none, or failed.
        error: what it failed with.
    """

    number: int
    values: Values
    history: tuple[Epoch, ...]
    status: Status
    error: str | None = None

    @property
    def auc(self) -> float:
        """The best validation AUC of its epochs; NaN where it does not count."""
        return best_auc(self.history) if self.counts else math.nan

    @property
    def seconds(self) -> float:
        """Spent training and validating."""
        return sum(epoch["seconds"] for epoch in self.history)

    @property
    def counts(self) -> bool:
        """Whether it may be the best: what diverges later is not to be trusted before."""
        return bool(self.history) and self.status in ("finished", "stopped")


def best_auc(history: Iterable[Epoch]) -> float:
    """The highest validation AUC of some epochs; NaN where there is none."""
    aucs = (epoch["val_auc"] for epoch in history)
    return max((auc for auc in aucs if not math.isnan(auc)), default=math.nan)


def best_of(records: Iterable[Record]) -> Record | None:
    """The trial with the highest validation AUC, the first of equals."""
    good = [record for record in records if record.counts]
    return max(good, key=lambda record: (record.auc, -record.number), default=None)


def write_record(sweep: Store, record: Record) -> Record:
    """Keeps a record; one that another driver of the same sweep wrote first stays.

    Returns:
        The record that is kept.
    """
    if sweep.create(_name(record.number), to_json(plain(record))):
        return record
    return _read(sweep, record.number)


def read_records(sweep: Store, trials: int) -> dict[int, Record]:
    """The records kept so far of the first so many trials, by number."""
    there = {entry.name for entry in sweep.list("trials/")}
    return {n: _read(sweep, n) for n in range(trials) if _name(n) in there}


def _read(sweep: Store, number: int) -> Record:
    kept = sweep.read_json(_name(number))
    return Record(**{**kept, "history": tuple(kept["history"])})


def _name(number: int) -> str:
    return f"trials/{number:05}.json"


def table(records: Sequence[Record], space: Space) -> pa.Table:
    """One row a trial: number, each searched key, best_val_auc, epochs, status, seconds, error.

    The best AUC is NaN where the trial does not count: it diverged or failed.
    """
    return pa.table(
        {
            "trial": pa.array([record.number for record in records], pa.int32()),
            **{key: _column([record.values[key] for record in records]) for key in space},
            "best_val_auc": pa.array([record.auc for record in records], pa.float64()),
            "epochs": pa.array([len(record.history) for record in records], pa.int32()),
            "status": pa.array([record.status for record in records], pa.string()),
            "seconds": pa.array([record.seconds for record in records], pa.float64()),
            "error": pa.array([record.error for record in records], pa.string()),
        }
    )


def _column(values: list[Any]) -> pa.Array:
    """Numbers as numbers, words as words, and anything else as JSON."""
    kinds = {type(value) for value in values}
    if kinds <= {int, float}:
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    if kinds in ({str}, {bool}):
        return pa.array(values)
    return pa.array([json.dumps(value, sort_keys=True) for value in values], pa.string())


# The picture.


def plot(records: Sequence[Record], space: Space) -> bytes:
    """A PNG: AUC over the plane of learning rate and weight decay, else over each searched key."""
    shown = [record for record in records if record.counts]
    in_a_plane = all(isinstance(space.get(key), Range) for key in _PLANE)
    single = [key for key in space if not (in_a_plane and key in _PLANE)]
    panels = len(single) + in_a_plane
    across = min(panels, 3)
    down = -(-panels // across)
    figure = Figure(figsize=(5.2 * across, 4.2 * down), layout="constrained")
    axes = [figure.add_subplot(down, across, n + 1) for n in range(panels)]
    if in_a_plane:
        _draw_plane(figure, axes.pop(0), shown, space)
    for axis, key in zip(axes, single, strict=True):
        _draw_key(axis, key, shown, space[key])
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _draw_plane(figure: Figure, axis: Axes, shown: Sequence[Record], space: Space) -> None:
    across, up = ([record.values[key] for record in shown] for key in _PLANE)
    dots = axis.scatter(across, up, c=[record.auc for record in shown], s=60, edgecolors="black")
    figure.colorbar(dots, ax=axis, label="best validation AUC")
    for record, x, y in zip(shown, across, up, strict=True):
        label = f" {record.number}" + (" (default)" if record.number == 0 else "")
        axis.annotate(label, (x, y), fontsize=7, va="bottom")
    for key, name in zip(_PLANE, "xy", strict=True):
        _scale(axis, name, [record.values[key] for record in shown], space[key])
        axis.set(**{f"{name}label": key})


def _draw_key(axis: Axes, key: str, shown: Sequence[Record], domain: Range | Choice) -> None:
    found = [record.values[key] for record in shown]
    numbers = all(isinstance(value, int | float) for value in found)
    across = found if numbers else [json.dumps(value) for value in found]
    for status, marker in (("finished", "o"), ("stopped", "x")):
        rows = [n for n, record in enumerate(shown) if record.status == status]
        axis.plot([across[n] for n in rows], [shown[n].auc for n in rows], marker, label=status)
    _scale(axis, "x", found, domain)
    axis.set(xlabel=key, ylabel="best validation AUC")
    axis.legend()


def _scale(axis: Axes, name: str, values: Sequence[Any], domain: Range | Choice) -> None:
    """The whole range, logarithmic where the space is; a default of 0 still has its place."""
    if not isinstance(domain, Range):
        return
    low, high = min(domain.low, *values), max(domain.high, *values)
    if domain.log and low > 0:
        axis.set(**{f"{name}scale": "log", f"{name}lim": (low / 1.3, high * 1.3)})
        # Labels between the powers of ten would run into each other.
        {"x": axis.xaxis, "y": axis.yaxis}[name].set_minor_formatter(NullFormatter())
    elif domain.log:
        {"x": axis.set_xscale, "y": axis.set_yscale}[name]("symlog", linthresh=domain.low)
