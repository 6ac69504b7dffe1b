"""A night of a planted shop for tests of the gates: its lists, and what is known of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visrec.interactions.log import shard_of
from visrec.jagged import Jagged, offsets_of
from visrec.publication.gates import GateContext, GatesConfig, judge
from visrec.publication.list_tables import Layout, lists_file, lists_table
from visrec.publication.run import Gate
from visrec.publication.run_spec import RunSpec
from visrec.publication.verify import ShardFacts, check_shard, read_lists
from visrec.recommend.inputs import ScoringData
from visrec.recommend.popular import popular_entries
from visrec.recommend.readback import expected_of
from visrec.retrieval.rules import Rules
from visrec.storage.store import Store

K, SHARDS, ARTISTS = 10, 3, 40
MODEL = "the model's digest"
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
    """A night of a shop whose users like what their vectors say. Mutants change its parts.

    What scoring is given is in `data`; its lists are `row_UK` and `score_UK`; `tables` are what
    is found in the files, and `before` was in the last publication's.
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
        cuts = [slice(*self.data.shard_offsets[s : s + 2]) for s in range(SHARDS)]
        return [self._table(cut) for cut in cuts]

    def _table(self, cut: slice) -> pa.Table:
        first_U = [mine[0] if len(mine) else -1 for mine in map(self.data.profiles.__getitem__,
                   range(cut.start, cut.stop))]  # fmt: skip
        because = np.where(self.data.cold_U[cut], -1, np.array(first_U, np.int64))
        table = lists_table(
            self.data.query_ids[cut],
            self.data.item_ids,
            self.row_UK[cut],
            self.score_UK[cut],
            np.repeat(because[:, None], self.row_UK.shape[1], axis=1),
            self.data.cold_U[cut],
            self.layout,
        )
        return through_a_file(table)

    def edit(self, shard: int, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Changes the rows of one table in place."""
        rows = self.tables[shard].to_pylist()
        change(rows)
        self.tables[shard] = pa.Table.from_pylist(rows, self.tables[shard].schema)

    def facts(self) -> ShardFacts:
        return reduce(add, map(self.facts_of, range(SHARDS)))

    def facts_of(self, shard: int) -> ShardFacts:
        target = RunSpec(Store("/nowhere"), SHARDS, K, self.layout, "user_to_item", {})
        before = read_lists(self.before[shard], "user_to_item") if self.before else None
        return check_shard(self.tables[shard], expected_of(self.data, target, shard), before)

    def judged(self, facts: ShardFacts | None = None) -> list[Gate]:
        users = len(self.data.query_ids)
        available = int(self.data.available_N.sum())
        last: dict[str, Any] = {
            "users": users,
            "cold_users": int(self.data.cold_U.sum()),
            "available": available,
        }
        last["without_feature"] = {"interactions": 0.01, "items": 0.01}
        last_inputs = {"model": MODEL, "items": "a digest", "users": None}
        known: dict[str, Any] = {
            "kind": "user_to_item",
            "k": K,
            "available_N": self.data.available_N,
            "artist_N": self.data.artist_N,
            "taken_N": self.data.count_N,
            "popular_N": popular_entries(self.data, K),
            "personal": True,
            "interactions": (1000, 10),
            "items": (400, 4),
            "model": MODEL,
            "tables": ["items"],
            "last": {**last, "inputs": last_inputs} if self.before else None,
            "evaluation": evaluated(),
        }
        return judge(facts or self.facts(), GateContext(**{**known, **self.context}), self.config)


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
    """A clean night: each user's K best of what is available and not theirs, by the rules.

    With a `trend` above 1 a few items are taken and liked by most.
    """
    rng = np.random.default_rng(seed)
    item_Nd, user_Ud = rng.normal(size=(items, 8)), rng.normal(size=(users, 8))
    item_ids = pa.array([f"i{n:04}" for n in range(items)])
    names = pa.array(sorted(f"u{n}" for n in rng.permutation(10 * users)[:users]))
    available_N = rng.random(items) < 0.9
    # Some things are liked more by all; a tenth of the users have taken nothing.
    appeal_N = rng.exponential(size=items) ** trend
    profiles = [
        np.sort(rng.choice(items, rng.integers(1, 9), replace=False, p=appeal_N / appeal_N.sum()))
        if rng.random() > 0.1
        else np.empty(0, np.int64)
        for _ in range(users)
    ]
    lengths = np.array([len(p) for p in profiles])
    order = np.argsort(shard_of(names, SHARDS), kind="stable")
    consumed = Jagged(np.concatenate(profiles), offsets_of(lengths)).take(order)
    count_N = np.bincount(consumed.values, minlength=items).astype(np.float32)
    cold_U = consumed.lengths == 0
    data = ScoringData(
        item_ids=item_ids,
        available_N=available_N,
        query_ids=names.take(pa.array(order)),
        shard_offsets=offsets_of(np.bincount(shard_of(names, SHARDS), minlength=SHARDS)),
        profiles=consumed,
        blocked=blocked or Jagged.empty(users),
        fingerprint_N=np.zeros(items, np.uint64),
        unseen_N=np.zeros(items, bool),
        trained_U=np.full(users, -1),
        count_N=count_N,
        cold_U=cold_U,
        artist_N=rng.permutation(np.arange(items) % ARTISTS),
        without_item=0,
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
    """Each user's K best candidates that keep to the rules, of cold users the most popular ones."""
    score_UN = np.where(data.cold_U[:, None], data.count_N, score_UN)
    score_UN = np.where(data.available_N, score_UN, -np.inf)
    for closed in (data.profiles, data.blocked):
        score_UN[closed.owners, closed.values] = -np.inf
    row_UN = np.argsort(-score_UN, axis=1, kind="stable")
    if data.rules is not None:
        row_UN = np.array([in_turn(row_N, score_N, data.rules)
                           for row_N, score_N in zip(row_UN, score_UN, strict=True)])  # fmt: skip
    row_UK = row_UN[:, :K]
    score_UK = np.take_along_axis(score_UN, row_UK, axis=1).astype(np.float32)
    score_UK[row_UK < 0] = -np.inf
    return np.where(np.isneginf(score_UK), -1, row_UK), score_UK


def in_turn(row_N: Rows, score_N: npt.NDArray[Any], rules: Rules) -> Rows:
    """(K,) the first rows that are open and that no rule keeps from those before, -1 behind."""
    taken: list[int] = []
    for row in map(int, row_N):
        if len(taken) < K and score_N[row] > -np.inf and may_follow(row, taken, rules):
            taken.append(row)
    return np.array([*taken, *[-1] * (K - len(taken))])


def may_follow(row: int, taken: Sequence[int], rules: Rules) -> bool:
    """Whether a list with these rows may have one more, by a look at each."""
    for limit, group_N in ((rules.cap, rules.group_N), (1, rules.near_duplicate_N)):
        positions_by_code = group_N is not None and group_N[row] >= 0
        if (
            positions_by_code
            and sum(bool(group_N[other] == group_N[row]) for other in taken) >= limit
        ):
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
    return {gate.key.removeprefix("gates.") for gate in shop.judged() if gate.outcome == "failed"}


def scores_of(shop: Shop, score_UN: npt.NDArray[Any]) -> None:
    shop.row_UK, shop.score_UK = best(shop.data, score_UN)


def shape(shop: Shop) -> tuple[int, int]:
    return len(shop.data.query_ids), len(shop.data.item_ids)
