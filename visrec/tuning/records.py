"""What a sweep keeps of its trials: one record each, a table of all of them, and a plot."""

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

from visrec.config import nan_if_null, plain
from visrec.storage.store import Store, to_json
from visrec.tuning.spaces import Choice, Range, Space, Values

Status = Literal["finished", "stopped", "diverged", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
EpochMetrics = Mapping[str, float]

# The two keys that are plotted against each other if both are searched.
_PLANE = ("train.learning_rate", "train.weight_decay")


@dataclass(frozen=True)
class TrialRecord:
    """One trial that has ended.

    Attributes:
        number: its number in the sweep; 0 is the default configuration.
        values: its value of each searched key.
        history: one entry an epoch, as in the trainer's history.
        status: finished at its last epoch, stopped early by the scheduler, diverged (its loss,
            weights or scores became NaN or infinite), or failed.
        error: the message of the error, if it failed.
    """

    number: int
    values: Values
    history: tuple[EpochMetrics, ...]
    status: Status
    error: str | None = None

    @property
    def auc(self) -> float:
        """The best validation AUC of its epochs; NaN for a trial that is not eligible."""
        return best_auc(self.history) if self.is_eligible else math.nan

    @property
    def seconds(self) -> float:
        """Seconds of training and validation."""
        return sum(epoch["seconds"] for epoch in self.history)

    @property
    def is_eligible(self) -> bool:
        """Whether it may be the best trial: it has an epoch, and neither diverged nor failed."""
        return bool(self.history) and self.status in ("finished", "stopped")


def best_auc(history: Iterable[EpochMetrics]) -> float:
    """The highest validation AUC of some epochs; NaN without any."""
    aucs = (epoch["val_auc"] for epoch in history)
    return max((auc for auc in aucs if not math.isnan(auc)), default=math.nan)


def best_trial(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The eligible trial with the highest validation AUC; of equal ones, the first by number."""
    eligible = [record for record in records if record.is_eligible]
    return max(eligible, key=lambda record: (record.auc, -record.number), default=None)


def write_record(sweep: Store, record: TrialRecord) -> TrialRecord:
    """Writes a record, unless another driver of the same sweep was first.

    Returns:
        The record that is on disk now.
    """
    if sweep.create(_record_name(record.number), to_json(plain(record))):
        return record
    return _read_record(sweep, record.number)


def read_records(sweep: Store, trials: int) -> dict[int, TrialRecord]:
    """The records so far of the first `trials` trials, by number."""
    names = {entry.name for entry in sweep.list("trials/")}
    return {n: _read_record(sweep, n) for n in range(trials) if _record_name(n) in names}


def _read_record(sweep: Store, number: int) -> TrialRecord:
    fields = sweep.read_json(_record_name(number))
    history = [{key: nan_if_null(value) for key, value in e.items()} for e in fields["history"]]
    return TrialRecord(**{**fields, "history": tuple(history)})


def _record_name(number: int) -> str:
    return f"trials/{number:05}.json"


def trials_table(records: Sequence[TrialRecord], space: Space) -> pa.Table:
    """One row a trial: number, each searched key, best_val_auc, epochs, status, seconds, error.

    The best AUC of a trial that diverged or failed is NaN.
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


def _column(values: list[object]) -> pa.Array:
    """Numbers, texts or flags as such; values of mixed or other types as JSON."""
    kinds = {type(value) for value in values}
    if kinds <= {int, float}:
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    if kinds in ({str}, {bool}):
        return pa.array(values)
    return pa.array([json.dumps(value, sort_keys=True) for value in values], pa.string())


# The plot.


def plot_sweep(records: Sequence[TrialRecord], space: Space) -> bytes:
    """A PNG of the AUC over each searched key; learning rate and weight decay share a panel."""
    shown = [record for record in records if record.is_eligible]
    has_plane = all(isinstance(space.get(key), Range) for key in _PLANE)
    single = [key for key in space if not (has_plane and key in _PLANE)]
    panels = len(single) + has_plane
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, n + 1) for n in range(panels)]
    if has_plane:
        _draw_plane(figure, axes.pop(0), shown, space)
    for axis, key in zip(axes, single, strict=True):
        _draw_key(axis, key, shown, space[key])
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def _draw_plane(figure: Figure, axis: Axes, shown: Sequence[TrialRecord], space: Space) -> None:
    xs, ys = ([record.values[key] for record in shown] for key in _PLANE)
    dots = axis.scatter(xs, ys, c=[record.auc for record in shown], s=60, edgecolors="black")
    figure.colorbar(dots, ax=axis, label="best validation AUC")
    for record, x, y in zip(shown, xs, ys, strict=True):
        label = f" {record.number}" + (" (default)" if record.number == 0 else "")
        axis.annotate(label, (x, y), fontsize=7, va="bottom")
    for key, name in zip(_PLANE, "xy", strict=True):
        _scale(axis, name, [record.values[key] for record in shown], space[key])
        axis.set(**{f"{name}label": key})


def _draw_key(axis: Axes, key: str, shown: Sequence[TrialRecord], domain: Range | Choice) -> None:
    values = [record.values[key] for record in shown]
    are_numbers = all(isinstance(value, int | float) for value in values)
    xs = values if are_numbers else [json.dumps(value) for value in values]
    for status, marker in (("finished", "o"), ("stopped", "x")):
        rows = [n for n, record in enumerate(shown) if record.status == status]
        axis.plot([xs[n] for n in rows], [shown[n].auc for n in rows], marker, label=status)
    _scale(axis, "x", values, domain)
    axis.set(xlabel=key, ylabel="best validation AUC")
    axis.legend()


def _scale(axis: Axes, name: str, values: Sequence[Any], domain: Range | Choice) -> None:
    """Scales an axis to the searched range, logarithmically if it is searched so.

    The axis also includes a default outside the range, such as 0.
    """
    if not isinstance(domain, Range):
        return
    low, high = min(domain.low, *values), max(domain.high, *values)
    if domain.log and low > 0:
        axis.set(**{f"{name}scale": "log", f"{name}lim": (low / 1.3, high * 1.3)})
        # Labels between the powers of ten would overlap.
        {"x": axis.xaxis, "y": axis.yaxis}[name].set_minor_formatter(NullFormatter())
    elif domain.log:
        {"x": axis.set_xscale, "y": axis.set_yscale}[name]("symlog", linthresh=domain.low)
