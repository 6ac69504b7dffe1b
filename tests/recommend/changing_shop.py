"""A planted shop that changes from night to night, and runs of it without Ray.

Shapes: N items, U users, d width.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tests.shop import groups_of
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer
from visrec.progress import Timer
from visrec.publication.claims import CLAIM, claim_run
from visrec.publication.list_tables import Layout
from visrec.publication.run_spec import RunSpec
from visrec.recommend.fingerprint_files import library_versions, write_item_fingerprints
from visrec.recommend.fingerprints import item_fingerprints
from visrec.recommend.inputs import ScoringData, fallback_scores
from visrec.recommend.lists import ShardRecommender
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.queries import Queries, QueriesInMemory
from visrec.recommend.writer import ShardWriter, WrittenShard
from visrec.retrieval.rules import Rules
from visrec.storage.store import Store

K, SHARDS, D = 6, 2, 5
RuleChoice = tuple[int | None, bool]  # the cap on a maker, and whether near-duplicates count
NO_RULES: RuleChoice = (None, False)


class ChangingShop:
    """Items with vectors and makers, and users with what they took.

    The vectors are of small integers, so that many scores are equal.
    """

    def __init__(self, seed: int, items: int = 90, users: int = 70) -> None:
        self.rng = np.random.default_rng(seed)
        self.items: dict[str, Any] = {}
        self.users: dict[str, list[str]] = {}
        self.blocked: dict[str, list[str]] = {}
        self.add_items(items)
        for _ in range(users):
            self.add_user()

    def add_items(self, count: int) -> None:
        for _ in range(count):
            # The new ids are anywhere among the others, so that row numbers change.
            self.items[f"i{self.rng.integers(10**6):06}"] = {
                "vector": self.rng.integers(-2, 3, D).astype(np.float32),
                "maker": int(self.rng.integers(-1, 12)),
                "available": bool(self.rng.random() < 0.9),
            }

    def add_user(self) -> None:
        taken = self.rng.choice(list(self.items), self.rng.integers(0, 6), replace=False)
        self.users[f"u{self.rng.integers(10**6):06}"] = taken.tolist()

    def pick(self, ids: Any) -> Any:
        return sorted(ids)[self.rng.integers(len(ids))]

    def pass_a_day(self) -> None:
        """Makes up to four changes of seven kinds."""
        for change in self.rng.choice(7, self.rng.integers(0, 5), replace=False):
            item = self.items[self.pick(self.items)]
            if change == 0:
                self.add_items(int(self.rng.integers(1, 9)))
            elif change == 1:
                del self.items[self.pick(self.items)]
            elif change == 2:
                item["vector"] = self.rng.integers(-2, 3, D).astype(np.float32)
            elif change == 3:
                item["available"] = not item["available"]
            elif change == 4:
                self.users[self.pick(self.users)].append(self.pick(self.items))
            elif change == 5:
                self.blocked.setdefault(self.pick(self.users), []).append(self.pick(self.items))
            else:
                item["maker"] = int(self.rng.integers(-1, 12))
                self.add_user()

    def warm_users(self) -> int:
        """How many users have taken something."""
        return sum(bool(taken) for taken in self.users.values())

    def data(self, rules: RuleChoice) -> ScoringData:
        """The input of scoring."""
        ids, names = sorted(self.items), sorted(self.users)
        row_of = {item_id: row for row, item_id in enumerate(ids)}

        def lists(items_by_user: dict[str, list[str]], *, ordered: bool) -> Jagged:
            rows = [
                list(dict.fromkeys(row_of[i] for i in items_by_user.get(u, []) if i in row_of))
                for u in names
            ]
            rows = rows if ordered else [sorted(each) for each in rows]
            values = np.array([row for each in rows for row in each], np.int64)
            return Jagged(values, offsets_from_lengths(np.array([len(each) for each in rows])))

        profiles = lists(self.users, ordered=True)
        vector_Nd = np.stack([self.items[i]["vector"] for i in ids])
        maker_N = np.array([self.items[i]["maker"] for i in ids])
        cap, near_duplicates = rules
        same_N = _near_duplicates(vector_Nd)
        group_N = pa.array(ids).take(pa.array(same_N, mask=same_N < 0))
        maker = pa.array([None if m < 0 else str(m) for m in maker_N.tolist()], pa.string())
        columns = [pa.array(ids), maker, *[group_N] * near_duplicates]
        takers_N = np.bincount(profiles.values, minlength=len(ids)).astype(np.float32)
        queries = Queries(
            query_ids=pa.array(names),
            profiles=profiles,
            blocked=lists(self.blocked, ordered=False),
            trained_U=np.full(len(names), -1),
            cold_U=profiles.lengths == 0,
        )
        return ScoringData(
            item_ids=pa.array(ids),
            available_N=np.array([self.items[i]["available"] for i in ids]),
            queries=QueriesInMemory.assign(queries, SHARDS),
            query_count=len(names),
            unseen_N=np.zeros(len(ids), bool),
            takers_N=takers_N,
            fallback_N=fallback_scores(takers_N, takers_N),
            artist_N=None,
            fingerprint_N=item_fingerprints(columns, [vector_Nd]),
            rules=Rules(cap or 0, maker_N if cap else None, same_N if near_duplicates else None)
            if cap or near_duplicates
            else None,
        )

    def scorer(self) -> DotScorer:
        vector_Nd = torch.from_numpy(
            np.stack([self.items[i]["vector"] for i in sorted(self.items)])
        )
        return DotScorer(vector_Nd, lambda bags, _: pool(vector_Nd, bags, "mean"), vector_Nd)


def _near_duplicates(vector_Nd: np.ndarray) -> np.ndarray:
    """(N,) groups: all that chains of vectors one step apart in one number connect."""
    distance_NN = np.abs(vector_Nd[:, None] - vector_Nd[None]).sum(axis=2)
    first_N = vector_Nd[:, 0] == 2
    near_NN = (distance_NN <= 1) & first_N[:, None] & first_N[None]
    return groups_of(np.argwhere(near_NN | (distance_NN == 0)).tolist(), len(vector_Nd))


def quiet_timer(log: Callable[[str], None] = lambda _: None) -> Timer:
    """A timer without a progress actor."""

    def remote(call: Callable[[Any], None]) -> SimpleNamespace:
        return SimpleNamespace(remote=call)

    actor: Any = SimpleNamespace(add=remote(lambda _: None), log_once=remote(log))
    return Timer(actor)


def write_run(
    shop: ChangingShop,
    run: Store,
    last: PublishedRun | None = None,
    *,
    layout: Layout = "nested",
    rules: RuleChoice = NO_RULES,
    log: Callable[[str], None] = lambda _: None,
) -> list[WrittenShard]:
    """Writes the lists and the fingerprints of a night."""
    data, timer = shop.data(rules), quiet_timer(log)
    spec = RunSpec(run, SHARDS, K, layout, "user_to_item", {"visrec.inputs": run.name})
    claim_run(run, spec.inputs_digest)
    write_item_fingerprints(data, spec)
    write = ShardWriter(data, spec, ShardRecommender(data, shop.scorer(), spec, last, timer), timer)
    return [write(shard) for shard in range(SHARDS)]


def published_run(
    run: Store, inputs_digest: str, versions: Mapping[str, str] | None = None
) -> PublishedRun:
    """A run that was written, as the next night reads it."""
    names = [entry.name for entry in run.list() if entry.name != CLAIM]
    sha256 = {name: hashlib.sha256(run.read(name)).hexdigest() for name in names}
    return PublishedRun(run, inputs_digest, sha256, versions or library_versions())
