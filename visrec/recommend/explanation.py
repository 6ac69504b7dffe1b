"""Why a user has a published list: the profile, entries with reasons, what rules kept out.

The list and its reasons are read from the run's file. What rules kept out is not stored with a run:
it is found by scoring the user again, without the rules, from the same model and the inputs of now.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import InputError
from visrec.ids import TEXT, index_in, nearest_id
from visrec.interactions.log import assign_shards
from visrec.jagged import Jagged
from visrec.models.artifact import MODEL_MANIFEST, load_artifact
from visrec.publication.list_tables import read_lists
from visrec.publication.manifest import RunManifest
from visrec.recommend.inputs import ScoringData, ScoringInputs, prepare_scoring
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.queries import Queries, read_query
from visrec.retrieval.topk import top_k
from visrec.sources.interactions import LIKED, InteractionsConfig, read_usable_rows
from visrec.sources.items import read_items
from visrec.storage.store import Store

# How many items beyond the list are examined to find those that rules excluded.
_CANDIDATES = 1000


@dataclass(frozen=True, kw_only=True)
class ListedItem:
    """An entry of a published list.

    Attributes:
        item_id: the item's id.
        rank: 1 for the best.
        score: as published.
        because_item_id: the profile item nearest to it; None without a reason.
        rank_before: its rank in the run before; None if it was not in that list.
    """

    item_id: str
    rank: int
    score: float
    because_item_id: str | None
    rank_before: int | None = None


@dataclass(frozen=True, kw_only=True)
class TakenItem:
    """An item that a user took, with the first time in Unix seconds."""

    item_id: str
    timestamp: int


@dataclass(frozen=True, kw_only=True)
class KeptOutItem:
    """An item that scores well enough for the list, and what kept it out."""

    item_id: str
    score: float
    why: str


@dataclass(frozen=True, kw_only=True)
class KeptOut:
    """What rules kept out of a list.

    Attributes:
        items: best first.
        note: why nothing is known; empty if something is.
    """

    items: Sequence[KeptOutItem] = ()
    note: str = ""

    @property
    def by_reason(self) -> Counter[str]:
        """How many items each reason kept out."""
        return Counter(item.why for item in self.items)


def read_list(
    recommendations: Store, manifest: RunManifest, user_id: str
) -> list[ListedItem] | None:
    """A user's list in a complete run; None if the run has none.

    Raises:
        InputError: the run has lists of items, or the file is not what was published.
    """
    if manifest.kind != "user_to_item":
        raise InputError(
            f"Found the run {manifest.run_id} at {recommendations.root}, whose lists are of items; "
            "expected a run with lists of users. Change --recommendations.",
            path=recommendations.root,
            key="recommendations",
        )
    run = PublishedRun.of(recommendations, manifest)
    shard = int(assign_shards(pa.array([user_id], TEXT), len(run.parts))[0])
    table = run.read_table(run.parts[shard])
    lists = None if table is None else read_lists(table, manifest.kind)
    if lists is None:
        raise InputError(
            f"{run.run.uri(run.parts[shard])} is missing or is not what was published. Publish an "
            "earlier run with `visrec rollback`, or make the run again.",
            path=run.run.uri(run.parts[shard]),
        )
    row = int(index_in(pa.array([user_id], TEXT), lists.query_ids)[0])
    if row < 0:
        return None
    entries = slice(lists.offsets[row], lists.offsets[row + 1])
    reasons = None if lists.reason_V is None else lists.reason_V[entries].to_pylist()
    items = zip(lists.item_ids[entries].to_pylist(), lists.score_V[entries].tolist(), strict=True)
    return [
        ListedItem(
            item_id=item_id,
            rank=n + 1,
            score=score,
            because_item_id=None if reasons is None else reasons[n],
        )
        for n, (item_id, score) in enumerate(items)
    ]


def unknown_user(recommendations: Store, manifest: RunManifest, user_id: str) -> InputError:
    """The error for a user without a list, with the user who was probably meant, or some."""
    run = PublishedRun.of(recommendations, manifest)
    ids: list[pa.Array] = []
    for name in run.parts:
        with run.run.open_input(name) as file:
            ids += pq.read_table(file, columns=["user_id"])["user_id"].cast(TEXT).chunks
    users = pa.chunked_array(ids, TEXT)
    some = ", ".join(map(repr, users[:3].to_pylist()))
    examples = f", such as {some}." if some else "."
    meant = nearest_id(user_id, users) or examples
    return InputError(
        f"Found no list of the user {user_id!r} in the run {manifest.run_id}; expected a user of "
        f"the interactions or of the users table, spelled as there{meant} Change --user.",
        key="user",
    )


def with_ranks_before(now: Sequence[ListedItem], before: Sequence[ListedItem]) -> list[ListedItem]:
    """The entries with their ranks in an earlier list."""
    ranks = {item.item_id: item.rank for item in before}
    return [replace(item, rank_before=ranks.get(item.item_id)) for item in now]


def read_profile(
    config: InteractionsConfig, uri: str, user_id: str
) -> tuple[list[TakenItem], list[TakenItem]]:
    """What a user took, latest first: items that count, and items that were rated too low.

    Args:
        config: which interactions count.
        uri: where they are.
        user_id: the user's id.
    """
    liked: dict[str, int] = {}
    disliked: dict[str, int] = {}
    for batch in read_usable_rows(config, uri, Counter()):
        own = batch.filter(pc.equal(batch["user_id"], user_id))
        counts = own[LIKED].to_pylist() if LIKED in own.column_names else [True] * len(own)
        rows = zip(own["item_id"].to_pylist(), own["timestamp"].to_pylist(), counts, strict=True)
        for item_id, timestamp, is_liked in rows:
            if item_id is not None:
                times = liked if is_liked else disliked
                times[item_id] = min(timestamp, times.get(item_id, timestamp))
    return _latest_first(liked), _latest_first(disliked)


def _latest_first(times: dict[str, int]) -> list[TakenItem]:
    items = [TakenItem(item_id=item_id, timestamp=time) for item_id, time in times.items()]
    return sorted(items, key=lambda item: (-item.timestamp, item.item_id))


def find_kept_out(
    inputs: ScoringInputs, manifest: RunManifest, user_id: str, listed: Sequence[ListedItem]
) -> KeptOut:
    """The items that score at least as well as the list's last entry and are not in it.

    Args:
        inputs: where scoring reads; the rules are those of the run.
        manifest: the run's manifest.
        user_id: the user's id.
        listed: the user's list.
    """
    if not inputs.model.exists(MODEL_MANIFEST):
        return KeptOut(note=f"the model {manifest.model_id} is not in the workspace any more")
    artifact = load_artifact(inputs.model)
    if artifact.digest != manifest.inputs["model"]:
        return KeptOut(note=f"the model {manifest.model_id} is another one now")
    data, arrays = prepare_scoring(inputs, len(manifest.files), "user_to_item", manifest.k)
    user = read_query(data.queries, user_id)
    if user is None:
        return KeptOut(note="the user is not in the interactions any more")
    if user.cold_U[0]:
        return KeptOut(note="the model cannot score this user, who has the fallback list")
    seen = user.profiles.keep(~data.unseen_N[user.profiles.values])
    ranked = top_k(
        artifact.model.scorer(arrays),
        seen,
        user.trained_U,
        Jagged.empty(1),
        None,
        min(len(data.item_ids), manifest.k + _CANDIDATES),
    )
    last = listed[-1].score if len(listed) == manifest.k else -np.inf
    why = _explainer(
        inputs, data, user, {item.item_id for item in listed}, _default_reason(manifest)
    )
    items = []
    for row, score in zip(ranked.row_BK[0].tolist(), ranked.score_BK[0].tolist(), strict=True):
        if row < 0 or score < last:
            break
        item_id = data.item_ids[row].as_py()
        if reason := why(row, item_id):
            items.append(KeptOutItem(item_id=item_id, score=score, why=reason))
    return KeptOut(items=items)


def _default_reason(manifest: RunManifest) -> str:
    """The reason given for an item that no known rule excluded."""
    changed = "something has changed since the run was made"
    if manifest.inputs["blocked"] is None:
        return f"not known: {changed}"
    return f"on the block list, which the run does not keep; or {changed}"


def _explainer(
    inputs: ScoringInputs, data: ScoringData, user: Queries, listed: set[str], default_reason: str
) -> Callable[[int, str], str | None]:
    """Returns a function that explains why an item is not in the list, or None for a listed item.

    It must be called with rows and ids from best to worst, because it counts listed items for each
    group.
    """
    rules = inputs.rules
    items = read_items(inputs.items_table, data.item_ids)
    stock_N = items.stock_N if rules.min_stock is not None else None
    taken = set(user.profiles[0].tolist())
    blocked = set(user.blocked[0].tolist())
    groups: list[tuple[str, npt.NDArray[np.int64], int, Counter[int]]] = []
    if data.rules is not None:
        if data.rules.group_N is not None:
            reason = f"the list has {data.rules.cap} of the same {rules.cap_by} (rules.cap)"
            groups.append((reason, data.rules.group_N, data.rules.cap, Counter()))
        if data.rules.near_duplicate_N is not None:
            reason = "a near-duplicate is in the list (rules.near_duplicate)"
            groups.append((reason, data.rules.near_duplicate_N, 1, Counter()))

    def explain(row: int, item_id: str) -> str | None:
        if item_id in listed:
            for _, group_N, _, count in groups:
                count[int(group_N[row])] += 1
            return None
        if row in taken:
            return "taken already"
        if row in blocked:
            return "blocked for this user, or rated too low"
        if not items.available_N[row]:
            return "not available"
        if stock_N is not None and stock_N[row] < rules.min_stock:
            return "out of stock (rules.min_stock)"
        if not data.available_N[row]:
            return "unknown to the model"
        for reason, group_N, limit, count in groups:
            if group_N[row] >= 0 and count[int(group_N[row])] >= limit:
                return reason
        return default_reason

    return explain
