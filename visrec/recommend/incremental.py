"""What the last publication's lists still are tonight, so that only the rest is scored again.

A list is decided by the model, the user's own items and the items that may be listed. Where a user
is what he was, and every item of his list is, tonight's list is the best of that list and of the
items that are new, changed or available again: an item that was not good enough for the last list
is not for this one. Users and items are what they were if their marks are: hashes of all that
scoring knows of them, which every run leaves beside its lists.

Scores are the same to the last bit whatever is scored beside (`visrec.retrieval.topk`), on machines
of one kind with the same versions; marks of other versions are not used.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from visrec.capacity import FRESH_SHARE
from visrec.ids import rows_of
from visrec.jagged import Jagged
from visrec.models.scorers import DotScorer
from visrec.publication.claims import FINGERPRINTS, PARTS
from visrec.publication.run_spec import RunSpec, has_metadata
from visrec.publication.shards import kept_or_written, stamped
from visrec.publication.verify import read_lists
from visrec.recommend.fingerprints import query_fingerprints
from visrec.recommend.inputs import ScoringData
from visrec.retrieval.rules import Rules
from visrec.retrieval.topk import TopK, TopKResult, empty, put
from visrec.storage.store import Store

Ints = npt.NDArray[np.int64]


# Marks, as files.


def write_item_fingerprints(data: ScoringData, target: RunSpec) -> tuple[str, str]:
    """Leaves the items' marks beside the run's lists; returns the file's name and SHA-256."""
    columns = {"item_id": data.item_ids, "mark": data.fingerprint_N, "available": data.available_N}
    return _write(target, target.item_fingerprints, lambda: pa.table(columns))


def write_query_fingerprints(data: ScoringData, target: RunSpec, shard: int) -> tuple[str, str]:
    """Leaves the marks of a shard's owners beside its lists; returns the file's name and its
    SHA-256."""
    start, stop = map(int, data.shard_offsets[shard : shard + 2])

    def table() -> pa.Table:
        query_ids = data.query_ids.slice(start, stop - start)
        return pa.table({"owner_id": query_ids, "mark": fingerprints_of(data, start, stop)})

    return _write(target, target.query_fingerprints(shard), table)


def fingerprints_of(data: ScoringData, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """(B,) the marks of the owners from `start` to `stop`."""
    flags_B2 = np.stack([data.cold_U[start:stop], data.trained_U[start:stop] >= 0], axis=1)
    lists = (data.profiles.slice(start, stop), data.blocked.slice(start, stop))
    return query_fingerprints(data.fingerprint_N, flags_B2, *lists)


def _write(target: RunSpec, name: str, table: Callable[[], pa.Table]) -> tuple[str, str]:
    marks = {**target.marks, **_versions()}
    data, _ = kept_or_written(target, name, marks, lambda: stamped(table(), marks, _to_file))
    return name, hashlib.sha256(data).hexdigest()


def _to_file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


@cache
def _versions() -> dict[str, str]:
    return {f"visrec.{name}": version(name) for name in ("visrec", "torch", "numpy")}


# What is carried over.


@dataclass(frozen=True)
class Last:
    """A publication whose lists may be carried over: of the same model, k, kind and rules, and with
    as many shards.

    Args:
        run: its directory.
        inputs: the digest of its inputs, which its marks must name.
        sha256: of each of its files, those of its marks included, as its manifest has them.
    """

    run: Store
    inputs: str
    sha256: Mapping[str, str]

    @property
    def damage(self) -> str:
        """What is said where a file cannot be used."""
        return (
            f"Files of the last publication, {self.run.root}, are missing, are not what was "
            "published, or are of other versions: lists that they hold are scored again."
        )

    def part(self, shard: int) -> str:
        """The name of a shard's file."""
        return sorted(name for name in self.sha256 if name.startswith(PARTS))[shard]

    def item_fingerprints(self) -> pa.Table | None:
        """The marks of its items."""
        names = [name for name in self.sha256 if name.startswith(f"{FINGERPRINTS}items-")]
        return self._marks(names[0]) if names else None

    def query_fingerprints(self, shard: int) -> pa.Table | None:
        """The marks of a shard's owners."""
        return self._marks(FINGERPRINTS + self.part(shard))

    def lists(self, shard: int) -> pa.Table | None:
        """A shard's lists."""
        return self._table(self.part(shard))

    def _marks(self, name: str) -> pa.Table | None:
        """The marks in a file, None where they are not there, or of other inputs or versions."""
        table = self._table(name)
        wanted = {**_versions(), "visrec.inputs": self.inputs}
        return table if table is not None and has_metadata(table.schema, wanted) else None

    def _table(self, name: str) -> pa.Table | None:
        """The table in a file, None where the file is not there, or not what was published."""
        found = self.run.read_if_exists(name)
        if found is None or hashlib.sha256(found[0]).hexdigest() != self.sha256.get(name):
            return None
        return pq.read_table(pa.BufferReader(found[0]))


@dataclass(frozen=True)
class Carried:
    """A shard's lists of the last publication in tonight's rows; the owners' places are tonight's.

    Args:
        unchanged_B: (B,) owners for whom all is as it was.
        best: their lists; those of the others mean nothing.
        because_BK: (B, k) rows, -1 for none.
    """

    unchanged_B: npt.NDArray[np.bool_]
    best: TopKResult
    because_BK: Ints


class IncrementalScorer:
    """Finds what is still good of the last publication, and merges what is new into it.

    Args:
        last: the publication.
        data: what tonight's scoring is given.
        target: what it writes.
        scorer: of tonight.
        say: told where something of the publication cannot be used.
    """

    def __init__(
        self,
        last: Last,
        data: ScoringData,
        target: RunSpec,
        scorer: DotScorer,
        say: Callable[[str], None],
    ) -> None:
        self._last, self._data, self._target, self._say = last, data, target, say
        then = last.item_fingerprints()
        if then is None:
            self._say(last.damage)
        self._kept_N = np.zeros(len(data.item_ids), bool)
        if then is not None:
            then_N = rows_of(data.item_ids, then["item_id"])
            fingerprint_N, open_N = (
                then[name].to_numpy()[then_N] for name in ("mark", "available")
            )
            self._kept_N = (
                (then_N >= 0) & (fingerprint_N == data.fingerprint_N) & open_N & data.available_N
            )
        fresh_N = data.available_N & ~self._kept_N
        self._worth_it = then is not None and fresh_N.mean() <= FRESH_SHARE
        if not self._worth_it:
            return  # nothing is carried, so the new items are not searched on their own
        fresh_F = np.flatnonzero(fresh_N)
        self._row_F = np.append(fresh_F, -1)  # behind the last: no item
        self._place_N = np.cumsum(fresh_N) - 1
        self._fresh_N = fresh_N
        vectors_Fd = scorer.vectors_Nd[torch.from_numpy(fresh_F).to(scorer.device)]
        self._search = TopK(DotScorer(vectors_Fd, scorer.prepare), None, target.k)

    def shard(self, shard: int) -> Carried | None:
        """The last lists of a shard's owners; None where there are none to be used."""
        if not self._worth_it:
            return None
        data, k = self._data, self._target.k
        start, stop = map(int, data.shard_offsets[shard : shard + 2])
        marks, table = self._last.query_fingerprints(shard), self._last.lists(shard)
        if marks is None or table is None:
            self._say(self._last.damage)
            return None
        lists = read_lists(table, self._target.kind)
        if lists is None or not len(lists.query_ids):
            return None
        query_ids = data.query_ids.slice(start, stop - start)
        list_B = rows_of(query_ids, lists.query_ids)
        marked_B = rows_of(query_ids, marks["owner_id"])
        mark_B = marks["mark"].to_numpy()[marked_B]
        # Shorter lists had all candidates that there were: they are made again.
        full_B = np.diff(lists.offsets)[list_B] == k
        unchanged_B = (list_B >= 0) & (marked_B >= 0) & full_B & ~data.cold_U[start:stop]
        unchanged_B &= mark_B == fingerprints_of(data, start, stop)
        entry_bK = lists.offsets[list_B[unchanged_B]][:, None] + np.arange(k)

        def of_all(row_V: Ints) -> Ints:
            row_BK = np.full((len(query_ids), k), -1)
            row_BK[unchanged_B] = row_V[entry_bK]
            return row_BK

        row_BK = of_all(rows_of(lists.item_ids, data.item_ids))
        score_BK = empty(len(query_ids), k).score_BK
        score_BK[unchanged_B] = lists.score_V[entry_bK]
        because_BK = np.full_like(row_BK, -1)
        if lists.because_V is not None:
            because_BK = of_all(rows_of(lists.because_V, data.item_ids))
        # A row of -1 stands for an item that is gone: it looks the last one up, and is no list.
        whole_B = (row_BK >= 0).all(axis=1) & self._kept_N[row_BK].all(axis=1)
        return Carried(unchanged_B & whole_B, TopKResult(row_BK, score_BK), because_BK)

    def merge(
        self, carried: Carried, owner_b: Ints, first: int, because: Callable[..., Ints]
    ) -> tuple[TopKResult, Ints, npt.NDArray[np.bool_]]:
        """Lists with the new items merged in, their reasons, and for whom that is not enough.

        Args:
            carried: the shard's lists.
            owner_b: (b,) whose: places in the shard, all of them `unchanged_B`.
            first: the shard's first owner.
            because: from profiles and (b, k) rows to the nearest items of the profile.
        """
        data, few = self._data, min(self._target.k, len(self._row_F) - 1)
        best = TopKResult(carried.best.row_BK[owner_b], carried.best.score_BK[owner_b])
        reason_bK, open_b = carried.because_BK[owner_b], np.zeros(len(owner_b), bool)
        if not few:
            return best, reason_bK, open_b
        rows = first + owner_b
        profiles = data.profiles.take(rows)
        seen = profiles.keep(~data.unseen_N[profiles.values])
        closed = profiles.joined(data.blocked.take(rows))
        closed = closed.keep(self._fresh_N[closed.values])
        closed = Jagged(self._place_N[closed.values], closed.offsets)
        fresh = self._search(seen, data.trained_U[rows], closed, few)
        # Where the best of the new items is worse than the last of the list, nothing changes.
        some_b = np.flatnonzero(fresh.score_BK[:, 0] >= best.score_BK[:, -1])
        if len(some_b):
            fresh = TopKResult(self._row_F[fresh.row_BK[some_b]], fresh.score_BK[some_b])
            old = TopKResult(best.row_BK[some_b], best.score_BK[some_b])
            lists, reasons, open_b[some_b] = self._merged(
                old, fresh, reason_bK[some_b], seen.take(some_b), because
            )
            put(best, some_b, lists)
            reason_bK[some_b] = reasons
        return best, reason_bK, open_b

    def _merged(
        self,
        old: TopKResult,
        fresh: TopKResult,
        because_bK: Ints,
        seen: Jagged,
        because: Callable[..., Ints],
    ) -> tuple[TopKResult, Ints, npt.NDArray[np.bool_]]:
        """Lists, their reasons and for whom they are not decided, from old entries and new ones."""
        data, k = self._data, self._target.k
        fresh_bK = fresh.row_BK
        row_bM = np.concatenate([old.row_BK, fresh_bK], axis=1)
        score_bM = np.concatenate([old.score_BK, fresh.score_BK], axis=1)
        order = np.lexsort((row_bM, -score_bM), axis=1)  # -inf, and so no item, is last
        sorted_bM = np.take_along_axis(row_bM, order, axis=1)
        kept_bM = np.broadcast_to(np.arange(order.shape[1]) < k, order.shape)
        open_b = np.zeros(len(order), bool)
        if data.rules is not None:
            kept_bM, open_b = _by_rules(data.rules, sorted_bM, order, fresh_bK, k)
        user_V, place_V = np.nonzero(kept_bM[~open_b])
        chosen = np.zeros((len(order), k), np.int64)
        chosen[~open_b] = order[~open_b][user_V, place_V].reshape(-1, k)
        best = TopKResult(
            *(np.take_along_axis(of_bM, chosen, axis=1) for of_bM in (row_bM, score_bM))
        )
        is_new_bK = chosen >= k
        new_bK = np.where(is_new_bK, best.row_BK, -1)
        reason_bK = np.take_along_axis(because_bK, np.where(is_new_bK, 0, chosen), axis=1)
        some_b = np.flatnonzero(is_new_bK.any(axis=1))
        if len(some_b):
            # The new ones to the front, for the search ends at the first that is none.
            order = np.argsort(~is_new_bK[some_b], axis=1, kind="stable")
            found = because(seen.take(some_b), np.take_along_axis(new_bK[some_b], order, axis=1))
            back = np.empty_like(found)
            np.put_along_axis(back, order, found, axis=1)
            reason_bK[some_b] = np.where(is_new_bK[some_b], back, reason_bK[some_b])
        return best, reason_bK, open_b


def _by_rules(
    rules: Rules, row_bM: Ints, order: Ints, fresh_bK: Ints, k: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which entries of merged lists are kept, and whose lists are not decided by that.

    An item that a rule had kept out of the last list may come in where a new item drives out the
    one that it stood against; and behind k new items there may be others.
    """
    kept_bM = rules.keep(row_bM, k)
    before_bM = np.cumsum(kept_bM, axis=1) - kept_bM < k  # the list was not full yet
    dropped_bM = ~kept_bM & before_bM & (row_bM >= 0)
    more_b = fresh_bK[:, -1] >= 0
    open_b = (dropped_bM & (order < k)).any(axis=1) | (dropped_bM.any(axis=1) & more_b)
    return kept_bM, open_b | (kept_bM.sum(axis=1) < k)
