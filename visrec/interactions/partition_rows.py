"""The two steps of preparing a table: the rows of a piece are assigned to partitions, and a
partition is sorted.

A table without some of the columns of interactions, such as the users table, has nulls there.

All rows of a user are in the partition that a hash of the user's id gives, and rows without a user
in that of their item. Within a partition they are sorted as in a log: by user, time and item, and
then by their order in the files. Nothing is left out yet: what counts depends on the cutoff, on
`min_rating` and on the catalogue, which change from night to night.

Shapes: P partitions, R rows, D distinct ids.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.hashes import hash_strings
from visrec.ids import TEXT
from visrec.interactions.log import assign_shards
from visrec.storage.schemas import PREPARED_INTERACTIONS, Column
from visrec.storage.store import Store, parse_json
from visrec.storage.table_pieces import TablePiece, read_piece

# Rows of a partition in one record batch; with fewer, headers would take most of the bytes.
_BATCH_ROWS = 4096
_MAX_BUFFERED_ROWS = 1 << 20  # before they are written: what a task holds in memory
# The largest dictionary of a partition's ids; beyond it, Parquet writes each id out in its row.
_DICTIONARY_BYTES = 1 << 30
_IDS = ("user_id", "item_id")
_PARTITIONED = pa.schema(
    [field.with_type(TEXT if field.name in _IDS else field.type) for field in PREPARED_INTERACTIONS]
)
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PartitionedPiece:
    """A file with the rows of a piece, by partition.

    Attributes:
        file: the Arrow file. Its batches belong to the partitions 0, 1, ..., P - 1, 0, 1, ...
        rows_P: rows of each partition.
        unit: the unit of numeric timestamps; None for any others.
        columns: the columns that at least one batch of rows has.
        lacking: the columns of `PREPARED_INTERACTIONS` that at least one batch lacks.
    """

    file: str
    rows_P: Sequence[int]
    unit: str | None
    columns: Sequence[str]
    lacking: Sequence[str]


def partition_piece(
    piece: TablePiece, columns: Sequence[Column], store: Store, stem: str, partitions: int
) -> PartitionedPiece:
    """Writes the rows of a piece by partition, unless an earlier start has done so.

    Args:
        piece: a piece of a table that names users.
        columns: the declared ones of the table.
        store: where to write.
        stem: the name of the file, without extension: a digest of where the rows come from and of
            P.
        partitions: P.

    Raises:
        InputError: the piece cannot be read.
    """
    report = f"{stem}.json"
    if store.exists(f"{stem}.arrow") and (found := store.read_if_exists(report)):
        return PartitionedPiece(**parse_json(found[0], store.uri(report)))
    reader = _PieceReader(piece, columns)
    rows_P = np.zeros(partitions, np.int64)
    with (
        store.open_replacement(f"{stem}.arrow") as sink,
        pa.ipc.new_file(sink, _PARTITIONED) as writer,
    ):
        for rows in _join_batches(reader, min(_MAX_BUFFERED_ROWS, _BATCH_ROWS * partitions)):
            partitioned, count_P = _partition(rows, partitions)
            for start, count in zip(np.cumsum(count_P) - count_P, count_P, strict=True):
                writer.write_batch(partitioned.slice(start, count))
            rows_P += count_P
    output = PartitionedPiece(
        file=f"{stem}.arrow",
        rows_P=rows_P.tolist(),
        unit=reader.unit,
        columns=sorted(reader.columns),
        lacking=sorted(reader.lacking),
    )
    store.write_json(report, asdict(output))
    return output


class _PieceReader:
    """Reads a piece in batches with all columns, and remembers which ones were there."""

    def __init__(self, piece: TablePiece, columns: Sequence[Column]) -> None:
        self._piece, self._columns = piece, columns
        self.unit: str | None = None
        self.columns, self.lacking = set[str](), set[str]()

    def __iter__(self) -> Iterator[pa.Table]:
        for batch, unit in read_piece(self._piece, self._columns):
            self.unit = unit
            self.columns.update(batch.column_names)
            self.lacking |= {*_PARTITIONED.names} - {*batch.column_names}
            yield pa.table(
                [
                    batch[field.name]
                    if field.name in batch.column_names
                    else pa.nulls(len(batch), field.type)
                    for field in _PARTITIONED
                ],
                schema=_PARTITIONED,
            )


def _join_batches(batches: Iterable[pa.Table], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at least `rows` rows, except the last."""
    pending: list[pa.Table] = []
    for batch in batches:
        pending.append(batch)
        if sum(map(len, pending)) >= rows:
            yield _as_batch(pa.concat_tables(pending))
            pending = []
    if any(map(len, pending)):
        yield _as_batch(pa.concat_tables(pending))


def _as_batch(rows: pa.Table) -> pa.RecordBatch:
    return rows.combine_chunks().to_batches()[0]


def _partition(rows: pa.RecordBatch, partitions: int) -> tuple[pa.RecordBatch, Ints]:
    """The rows partition after partition, and (P,) how many each has."""
    if partitions == 1:
        return rows, np.array([len(rows)])
    partition_R = partition_numbers(rows["user_id"], partitions)
    if rows["user_id"].null_count:
        # In one partition, rows without a user might be too many to sort.
        without_R = rows["user_id"].is_null().to_numpy(zero_copy_only=False)
        partition_R[without_R] = partition_numbers(rows["item_id"], partitions)[without_R]
    order = pa.array(np.argsort(partition_R, kind="stable"))
    return rows.take(order), np.bincount(partition_R, minlength=partitions)


def partition_numbers(ids: pa.Array, partitions: int) -> npt.NDArray[np.uint16]:
    """(R,) the partition of each id: its hash modulo P. Users get their shards in the same way."""
    return (hash_strings(ids) % np.uint64(partitions)).astype(np.uint16)


# A partition.


def rows_of_shard(rows: pa.Table, shard: int, shards: int) -> pa.Table:
    """The rows of a partition whose users are in a shard, in their order."""
    chunks = rows["user_id"].unify_dictionaries().chunks
    if not chunks:
        return rows
    is_own_D = assign_shards(chunks[0].dictionary, shards) == shard
    is_own_D = np.append(is_own_D, False)  # nulls have the code -1, which is the last row
    is_own = [is_own_D[pc.fill_null(chunk.indices, -1).to_numpy()] for chunk in chunks]
    return rows.filter(pa.array(np.concatenate(is_own)))


def write_partition(
    store: Store,
    name: str,
    partition: tuple[int, int],
    before: str | None,
    files: Sequence[str],
) -> int:
    """Sorts the rows of a partition into one file, unless it exists.

    Args:
        store: contains all of these files.
        name: the name of the file to write: a digest of what its rows come from.
        partition: its number, and P.
        before: the partition's previous file, whose rows precede the added ones; None if it has
            none.
        files: the partitioned pieces whose rows are added, in the order of the inputs.

    Returns:
        The number of its rows.
    """
    if store.exists(name):
        with store.open_input(name) as source:
            return int(pq.ParquetFile(source).metadata.num_rows)
    parts = [] if before is None else [store.read_table(before).cast(_PARTITIONED)]
    parts += [_read_partitioned(store, file, partition) for file in files]
    rows = sort_rows(pa.concat_tables(parts))
    with store.open_replacement(name) as sink:
        pq.write_table(
            rows,
            sink,
            row_group_size=max(1, len(rows)),
            use_dictionary=list(_IDS),
            dictionary_pagesize_limit=_DICTIONARY_BYTES,
            compression="zstd",
            compression_level=1,
            write_statistics=["timestamp"],  # those of ids take as long as all the rest
        )
    return len(rows)


def _read_partitioned(store: Store, name: str, partition: tuple[int, int]) -> pa.Table:
    number, partitions = partition
    with store.open_input(name) as source, pa.ipc.open_file(source) as file:
        batches = range(number, file.num_record_batches, partitions)
        return pa.Table.from_batches([file.get_batch(batch) for batch in batches], _PARTITIONED)


def sort_rows(rows: pa.Table) -> pa.Table:
    """The rows in the order of a log, nulls first, with ids as codes into sorted distinct ids.

    Args:
        rows: rows with the columns of `PREPARED_INTERACTIONS`, ids as text.
    """
    user_ids, user_R = _sorted_codes(rows["user_id"])
    item_ids, item_R = _sorted_codes(rows["item_id"])
    time_R, first_time = _times_from_one(rows["timestamp"])
    rest = rows.select(["rating", "evaluation"])
    keys = [user_R, time_R, item_R]
    bits = [int(key_R.max(initial=0)).bit_length() for key_R in keys]
    if sum(bits) > 63:
        order = np.lexsort((item_R, time_R, user_R))
    else:
        key_R = user_R << (bits[1] + bits[2]) | time_R << bits[2] | item_R
        if all(column.null_count == len(rows) for column in rest.columns):
            # Rows with the same key are equal, and `sort` is faster than `argsort`.
            key_R.sort()
            user_R = key_R >> (bits[1] + bits[2])
            time_R = key_R >> bits[2] & ((1 << bits[1]) - 1)
            item_R = key_R & ((1 << bits[2]) - 1)
            order = None
        else:
            order = np.argsort(key_R, kind="stable")
    if order is not None:
        user_R, time_R, item_R = user_R[order], time_R[order], item_R[order]
        rest = rest.take(pa.array(order))
    return pa.table(
        [
            _dictionary_array(user_R, user_ids),
            _dictionary_array(item_R, item_ids),
            pa.array(time_R + (first_time - 1), mask=time_R == 0),
            *rest.columns,
        ],
        schema=PREPARED_INTERACTIONS,
    )


def _sorted_codes(ids: pa.ChunkedArray) -> tuple[pa.LargeStringArray, Ints]:
    """(D,) the distinct ids, sorted, and (R,) one plus the row of each id in them, 0 for null."""
    # All chunks have the same dictionary.
    chunks = ids.dictionary_encode().chunks or [pa.array([], ids.type).dictionary_encode()]
    distinct = chunks[0].dictionary
    order = pc.sort_indices(distinct)
    code_D = np.zeros(len(order) + 1, np.int64)
    # The last entry stays 0: null has the index -1.
    code_D[order.to_numpy()] = np.arange(1, len(order) + 1)
    indices = pc.fill_null(pa.chunked_array([chunk.indices for chunk in chunks]), -1)
    return distinct.take(order), code_D[indices.to_numpy()]


def _times_from_one(times: pa.ChunkedArray) -> tuple[Ints, int]:
    """(R,) seconds since the first time, plus 1; 0 for null. Also the first time."""
    first = pc.min(times).as_py() or 0
    return pc.fill_null(pc.subtract(times, first - 1), 0).to_numpy(), first


def _dictionary_array(code_R: Ints, ids: pa.LargeStringArray) -> pa.DictionaryArray:
    """The ids of codes that start with 1, as a dictionary array; 0 is null."""
    indices = pa.array((code_R - 1).astype(np.int32), mask=code_R == 0)
    return pa.DictionaryArray.from_arrays(indices, ids.cast(pa.string()))
