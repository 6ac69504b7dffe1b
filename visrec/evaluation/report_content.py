"""What the evaluation report shows, as data: `report.py` turns it into a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from visrec.evaluation.record import EvaluationRecord
from visrec.evaluation.results import Metrics
from visrec.evaluation.verdict import Verdict
from visrec.publication.gate import Gate
from visrec.publication.manifest import RunManifest

LIST_LENGTH = 12  # of an example: pictures in two rows on a wide screen


@dataclass(frozen=True, kw_only=True)
class ItemCard:
    """One item as a page shows it.

    Attributes:
        item_id: its id, shown if there is no title.
        title: its name.
        thumbnail: WebP bytes, as `cards.thumbnail` makes them.
    """

    item_id: str
    title: str | None = None
    thumbnail: bytes | None = None

    @property
    def name(self) -> str:
        """The title, or else the id."""
        return self.title or self.item_id


@dataclass(frozen=True, kw_only=True)
class ListEntry:
    """An item in a list.

    Attributes:
        item: the item.
        rank: its rank, 1 for the best item.
        score: the score that the model gave it, on the page of an explanation.
        because: the profile item that explains it.
        hit: in a list, whether the user took the item next; among the items that the user took
            next, whether the list has it.
        badges: what else there is to say, in a word or two each.
    """

    item: ItemCard
    rank: int | None = None
    score: float | None = None
    because: ItemCard | None = None
    hit: bool = False
    badges: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class UserExample:
    """What is known of a user, what the user took next, and the recommendations, best first.

    Attributes:
        user_id: the user's id, or its hash.
        profile: items of the profile, latest first: those that explain the list, and the latest.
        profile_size: number of items in the profile.
        held_out: what the user took next, with its rank.
        recommended: the list.
        auc: the model's AUC for this user.
        rival_auc: the best baseline's AUC for this user.
        is_cold: whether the user, or something that the user took next, is new to the model.
    """

    user_id: str
    profile: Sequence[ItemCard]
    profile_size: int
    held_out: Sequence[ListEntry]
    recommended: Sequence[ListEntry]
    auc: float | None = None
    rival_auc: float | None = None
    is_cold: bool = False

    @property
    def items(self) -> Iterator[ItemCard]:
        """Every item that is shown of the user, some of them several times."""
        yield from self.profile
        for entry in (*self.held_out, *self.recommended):
            yield entry.item
            if entry.because:
                yield entry.because

    @property
    def only_reason(self) -> ItemCard | None:
        """The item that explains the whole list; None if there are several, or none."""
        reasons = [entry.because for entry in self.recommended]
        return reasons[0] if len({r.item_id if r else None for r in reasons}) == 1 else None

    @property
    def found(self) -> int:
        """How many held-out items are in the list."""
        return sum(entry.hit for entry in self.recommended)


@dataclass(frozen=True, kw_only=True)
class ClusterRow:
    """A visual cluster: how many items it has, their share of the catalogue, and some of them."""

    size: int
    share: float
    items: Sequence[ItemCard]


@dataclass(frozen=True, kw_only=True)
class VisualClusters:
    """How many clusters there are, and the largest of them."""

    count: int
    rows: Sequence[ClusterRow]


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """How a model was trained.

    Attributes:
        model: its label.
        val_auc: validation AUC of each epoch; NaN without validation users or if it diverged.
        loss: mean loss of each epoch.
        best_epoch: the epoch that was chosen, from 1 on; None if nothing was chosen.
    """

    model: str
    val_auc: Sequence[float]
    loss: Sequence[float]
    best_epoch: int | None


@dataclass(frozen=True, kw_only=True)
class SweepTrial:
    """One trial of a sweep: its number, the searched keys, and the best validation AUC."""

    number: int
    values: Mapping[str, str]
    auc: float | None
    status: str


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """A sweep: its name and its trials in the order of their numbers."""

    name: str
    trials: Sequence[SweepTrial]


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The published run, and the run that was published before it.

    Attributes:
        published_at: when, as in the pointer.
        run: the published run.
        before: the run before; None if there was none, or it was removed.
    """

    published_at: str
    run: RunManifest
    before: RunManifest | None


@dataclass(frozen=True, kw_only=True)
class HeldBackRun:
    """The last run that gates held back, if it is newer than the published one.

    Attributes:
        run_id: the run's id.
        held_back_at: when.
        gates: the gates that failed.
    """

    run_id: str
    held_back_at: str
    gates: Sequence[Gate]


@dataclass(frozen=True, kw_only=True)
class RejectedPicture:
    """A picture that could not be used, and why."""

    item_id: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class RejectedPictures:
    """How many pictures were rejected, by reason, and some of them."""

    by_reason: Mapping[str, int]
    examples: Sequence[RejectedPicture]


@dataclass(frozen=True, kw_only=True)
class WorkspaceFacts:
    """What the rest of the workspace adds to an evaluation.

    Attributes:
        data: facts about the data by name, such as the number of items.
        curves: how the trained models were trained.
        sweeps: searches for settings.
        publication: what is published; None if nothing is.
        held_back: a run that gates held back.
        rejected: pictures without features; None if features were not made from pictures.
        seconds: wall time by job and by phase.
        unreadable: what there is but could not be read, and why, a sentence each.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[TrainingCurve] = ()
    sweeps: Sequence[SweepSummary] = ()
    publication: Publication | None = None
    held_back: HeldBackRun | None = None
    rejected: RejectedPictures | None = None
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unreadable: Sequence[str] = ()

    def with_seconds(self, job: str, phases: Mapping[str, float]) -> "WorkspaceFacts":
        """The facts with the wall time of one more job."""
        return replace(self, seconds={**self.seconds, job: phases})


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows. A figure is `{"mean", "low", "high", "n"}`; only the mean is
    required.

    Attributes:
        model: label of the model that the page is about, a key of `metrics`.
        model_id: its name in the workspace.
        verdict: whether it is good, and what to do.
        metrics: ranking metrics, `{model: {metric: figure}}`; in all of them, higher is better.
        made: when, in words.
        users: number of test users.
        items: number of items that were ranked.
        examples: some users.
        before: the evaluation before this one.
        lists: beyond-accuracy metrics, `{model: {metric: figure}}`.
        by_profile_size: `{size: {model: {metric: figure}}}`.
        paired: differences between models, `{"a - b": {metric: figure}}`.
        costs: `{model: {"parameters", "train_s", "score_ms"}}`.
        clusters: the visual clusters of the catalogue.
        facts: what else the workspace has.
    """

    model: str
    model_id: str
    verdict: Verdict
    metrics: Metrics
    made: str
    users: int
    items: int
    examples: Sequence[UserExample] = ()
    before: EvaluationRecord | None = None
    lists: Metrics = field(default_factory=dict)
    by_profile_size: Mapping[str, Metrics] = field(default_factory=dict)
    paired: Metrics = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    clusters: VisualClusters | None = None
    facts: WorkspaceFacts = field(default_factory=WorkspaceFacts)
