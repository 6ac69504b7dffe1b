"""A night of a planted shop for tests of the gates: its lists, and what is known of the run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tests.publication.runs import draft_manifest
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.publication.gate import Gate
from visrec.publication.gate_context import FeatureCounts, GateContext, GatesConfig
from visrec.publication.integrity_gates import integrity_gates
from visrec.publication.judgement_gates import judgement_gates
from visrec.publication.list_tables import Layout, lists_file, lists_table, read_lists
from visrec.publication.manifest import RunManifest
from visrec.publication.run_spec import RunSpec
from visrec.publication.verify import ListChecks, count_faults
from visrec.recommend.inputs import ScoringData, fallback_scores
from visrec.recommend.popular import PopularLists
from visrec.recommend.queries import Queries, QueriesInMemory, read_all_queries
from visrec.recommend.readback import expected_shard
from visrec.retrieval.rules import Rules
from visrec.storage.store import Store

K, SHARDS, ARTISTS = 10, 3, 40
MODEL = "digest of the model"
Rows = npt.NDArray[np.int64]


def evaluated(model: float = 0.9, visrank: float = 0.7, popularity: float = 0.6) -> dict[str, Any]:
    """metrics.json as jobs/evaluate.py writes it, as far as the gates read it."""
    means = {"mine": model, "visrank-max": visrank - 0.1, "visrank-mean": visrank}
    means["popularity"] = popularity
    figures = {
        name: {"auc": {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "n": 100}}
        for name, mean in means.items()
    }
    return {"models": figures, "digests": {"mine": MODEL}}


@dataclass
class Shop:
    """A night of a shop whose users like items by the inner product of vectors.

    Mutants change its parts.

    Attributes:
        data: the input of scoring.
        row_UK: the items of each list.
        score_UK: their scores.
        tables: the lists as read back from the files of the run.
        before: those of the last publication; empty for none.
        layout: the layout of the tables.
        context: what differs from the context of a clean night.
        config: thresholds of the gates.
    """

    data: ScoringData
    row_UK: Rows
    score_UK: npt.NDArray[np.float32]
    tables: list[pa.Table] = field(default_factory=list)
    before: list[pa.Table] = field(default_factory=list)
    layout: Layout = "nested"
    context: dict[str, Any] = field(default_factory=dict)
    config: GatesConfig = field(default_factory=GatesConfig)

    def write(self) -> list[pa.Table]:
        """The lists as tables that went through a file."""
        lengths = [len(self.data.queries.read(shard)) for shard in range(SHARDS)]
        starts = offsets_from_lengths(np.array(lengths)).tolist()
        return [self._table(s, slice(*starts[s : s + 2])) for s in range(SHARDS)]

    @property
    def queries(self) -> Queries:
        """All queries, shard after shard."""
        return read_all_queries(self.data.queries)

    def _table(self, shard: int, cut: slice) -> pa.Table:
        queries = self.data.queries.read(shard)
        first_U = [mine[0] if len(mine) else -1 for mine in map(queries.profiles.__getitem__,
                   range(len(queries)))]  # fmt: skip
        because = np.where(queries.cold_U, -1, np.array(first_U, np.int64))
        table = lists_table(
            queries.query_ids,
            self.data.item_ids,
            self.row_UK[cut],
            self.score_UK[cut],
            np.repeat(because[:, None], self.row_UK.shape[1], axis=1),
            queries.cold_U,
            self.layout,
        )
        return through_a_file(table)

    def edit(self, shard: int, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Changes the rows of one table in place."""
        rows = self.tables[shard].to_pylist()
        change(rows)
        self.tables[shard] = pa.Table.from_pylist(rows, self.tables[shard].schema)

    def checks(self) -> ListChecks:
        return reduce(add, map(self.checks_of_shard, range(SHARDS)))

    def checks_of_shard(self, shard: int) -> ListChecks:
        spec = RunSpec(Store("/nowhere"), SHARDS, K, self.layout, "user_to_item", {})
        last = read_lists(self.before[shard], "user_to_item") if self.before else None
        expected = expected_shard(self.data, self.data.queries.read(shard), spec)
        return count_faults(self.tables[shard], expected, last)

    def last_manifest(self, **fields: Any) -> RunManifest:
        """The manifest of a last publication like this run, except for some fields."""
        like_this: dict[str, Any] = {
            "queries": self.data.query_count,
            "cold_users": int(self.queries.cold_U.sum()),
            "available": int(self.data.available_N.sum()),
            "without_feature": {"interactions": 0.01, "items": 0.01},
            "inputs": {"model": MODEL, "items": "a digest", "users": None},
        }
        return draft_manifest(**{**like_this, **fields})

    def gates(self, checks: ListChecks | None = None) -> list[Gate]:
        """All gates; `context` overrides what is known of the run."""
        known: dict[str, Any] = {
            "kind": "user_to_item",
            "k": K,
            "available_N": self.data.available_N,
            "artist_N": self.data.artist_N,
            "takers_N": self.data.takers_N,
            "popular_N": PopularLists(self.data, K).counts(self.queries),
            "personalized": True,
            "interactions_without_feature": FeatureCounts(1000, 10),
            "items_without_feature": FeatureCounts(400, 4),
            "model_digest": MODEL,
            "model_name": "curatornet",
            "tables": ["items"],
            "last": self.last_manifest() if self.before else None,
            "evaluation": evaluated(),
        }
        context = GateContext(**{**known, **self.context})
        checks = checks or self.checks()
        return [*integrity_gates(checks, context), *judgement_gates(checks, context, self.config)]


def through_a_file(table: pa.Table) -> pa.Table:
    return pq.read_table(pa.BufferReader(lists_file(table)))


def open_shop(
    seed: int = 0,
    users: int = 200,
    items: int = 400,
    layout: Layout = "nested",
    rules: Rules | None = None,
    blocked: Jagged | None = None,
    trend: float = 1.0,
) -> Shop:
    """A clean night: each user has the K best available items that rules and profile leave.

    With a `trend` above 1 a few items are taken and liked by most users.
    """
    rng = np.random.default_rng(seed)
    item_Nd, user_Ud = rng.normal(size=(items, 8)), rng.normal(size=(users, 8))
    item_ids = pa.array([f"i{n:04}" for n in range(items)])
    names = pa.array(sorted(f"u{n}" for n in rng.permutation(10 * users)[:users]))
    available_N = rng.random(items) < 0.9
    # Some items are liked more by everybody; a tenth of the users have taken nothing.
    appeal_N = rng.exponential(size=items) ** trend
    profiles = [
        np.sort(rng.choice(items, rng.integers(1, 9), replace=False, p=appeal_N / appeal_N.sum()))
        if rng.random() > 0.1
        else np.empty(0, np.int64)
        for _ in range(users)
    ]
    lengths = np.array([len(p) for p in profiles])
    consumed = Jagged(np.concatenate(profiles), offsets_from_lengths(lengths))
    takers_N = np.bincount(consumed.values, minlength=items).astype(np.float32)
    queries = Queries(
        names, consumed, Jagged.empty(users), np.full(users, -1), consumed.lengths == 0
    )
    partitioned = QueriesInMemory.assign(queries, SHARDS)
    if blocked is not None:  # in the order of the shards
        partitioned = replace(partitioned, queries=replace(partitioned.queries, blocked=blocked))
    data = ScoringData(
        item_ids=item_ids,
        available_N=available_N,
        queries=partitioned,
        query_count=users,
        fingerprint_N=np.zeros(items, np.uint64),
        unseen_N=np.zeros(items, bool),
        takers_N=takers_N,
        fallback_N=fallback_scores(takers_N, takers_N),
        artist_N=rng.permutation(np.arange(items) % ARTISTS),
        rules=rules,
    )
    affinity_UN = user_Ud @ item_Nd.T + 0.3 * appeal_N
    last_UN = affinity_UN + rng.normal(scale=0.3, size=affinity_UN.shape)
    shop = Shop(data, *best(data, last_UN), layout=layout)
    shop.before = shop.write()
    shop.row_UK, shop.score_UK = best(data, affinity_UN)
    shop.tables = shop.write()
    return shop


def best(data: ScoringData, score_UN: npt.NDArray[Any]) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Each user's K best candidates that the rules allow; for cold users, the most popular ones."""
    queries = read_all_queries(data.queries)
    score_UN = np.where(queries.cold_U[:, None], data.takers_N, score_UN)
    score_UN = np.where(data.available_N, score_UN, -np.inf)
    for closed in (queries.profiles, queries.blocked):
        score_UN[closed.row_ids, closed.values] = -np.inf
    row_UN = np.argsort(-score_UN, axis=1, kind="stable")
    if data.rules is not None:
        row_UN = np.array([fill_in_order(row_N, score_N, data.rules)
                           for row_N, score_N in zip(row_UN, score_UN, strict=True)])  # fmt: skip
    row_UK = row_UN[:, :K]
    score_UK = np.take_along_axis(score_UN, row_UK, axis=1).astype(np.float32)
    score_UK[row_UK < 0] = -np.inf
    return np.where(np.isneginf(score_UK), -1, row_UK), score_UK


def fill_in_order(row_N: Rows, score_N: npt.NDArray[Any], rules: Rules) -> Rows:
    """(K,) the first rows with a score that the rules allow, -1 after the last."""
    taken: list[int] = []
    for row in map(int, row_N):
        if len(taken) < K and score_N[row] > -np.inf and may_follow(row, taken, rules):
            taken.append(row)
    return np.array([*taken, *[-1] * (K - len(taken))])


def may_follow(row: int, taken: Sequence[int], rules: Rules) -> bool:
    """Whether a list with these rows may have one more, by a plain loop."""
    for limit, group_N in ((rules.cap, rules.group_N), (1, rules.near_duplicate_N)):
        if group_N is None or group_N[row] < 0:
            continue
        if sum(bool(group_N[other] == group_N[row]) for other in taken) >= limit:
            return False
    return True


def groups_of(pairs: Iterable[tuple[int, int]], items: int) -> Rows:
    """(items,) the group of each item by pairs that are the same, its lowest row; -1 for none."""
    groups = [{row} for row in range(items)]
    for one, other in pairs:
        both = groups[one] | groups[other]
        for row in both:
            groups[row] = both
    return np.array([min(group) if len(group) > 1 else -1 for group in groups])


def failed(shop: Shop) -> set[str]:
    """The failed gates: the key of the threshold, or the name of a gate without one."""
    gates = [gate for gate in shop.gates() if gate.outcome == "failed"]
    return {gate.key.removeprefix("gates.") or gate.name for gate in gates}


def scores_of(shop: Shop, score_UN: npt.NDArray[Any]) -> None:
    shop.row_UK, shop.score_UK = best(shop.data, score_UN)


def shape(shop: Shop) -> tuple[int, int]:
    return shop.data.query_count, len(shop.data.item_ids)
