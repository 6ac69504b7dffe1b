"""Lists as one file that replaces the one before in one step: JSON lines, or CSV."""

import gzip
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from visrec.exports.batches import items_json, slices, to_json
from visrec.exports.run_lists import BeforeShard, RunLists
from visrec.publication.list_tables import SCHEMAS, Lists
from visrec.storage.store import Store

FileFormat = Literal["jsonl", "csv"]


@dataclass(frozen=True)
class ListFile:
    """A file with all lists of a run.

    Attributes:
        folder: where it is.
        name: its name in the folder.
        format: `jsonl`, one line a list; or `csv`, one line an entry.
        is_gzip: whether it is compressed.
    """

    folder: Store
    name: str
    format: FileFormat
    is_gzip: bool

    def write(self, run: RunLists, before_shard: BeforeShard) -> int:
        """Writes the file under another name, then gives it its own.

        Args:
            run: the run.
            before_shard: called before each shard; raises if this process must not go on.

        Returns:
            How many lists were written.
        """
        self.folder.discard_unfinished(self.name)  # of an export that was killed
        written = 0
        with self.folder.open_replacement(self.name) as file, self._compressed(file) as sink:
            if self.format == "csv":
                sink.write(f"{','.join(_csv_columns(run))}\n".encode())
            for shard in range(len(run.parts)):
                before_shard(shard, len(run.parts))
                for lists in slices(run.read_shard(shard)):
                    if self.format == "csv":
                        _write_csv(lists, run, sink)
                    else:
                        _write_jsonl(lists, run, sink)
                    written += len(lists.query_ids)
        return written

    def _compressed(self, file: pa.NativeFile) -> AbstractContextManager[Any]:
        """The file as bytes are written to it; Any, as both kinds of file have `write`."""
        if not self.is_gzip:
            return nullcontext(file)
        # pyarrow's own stream has only level 9: four times as slow, for 2 % fewer bytes.
        return gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)


def _write_jsonl(lists: Lists, run: RunLists, sink: Any) -> None:
    """`{"user_id":"u1","cold":false,"items":[{"item_id":"a","score":0.5}]}`"""
    ids = pa.array(map(to_json, lists.query_ids.to_pylist()), pa.string())
    texts = [f'{{"{run.id_column}":', ids]
    if lists.cold_B is not None:
        texts += [',"cold":', pc.if_else(pa.array(lists.cold_B), "true", "false")]
    lines = pc.binary_join_element_wise(*texts, ',"items":', items_json(lists), "}\n", "")
    sink.write("".join(lines.to_pylist()).encode())


def _write_csv(lists: Lists, run: RunLists, sink: Any) -> None:
    """`"u1",1,"a",0.5,"b"`"""
    list_V = lists.list_V
    rank_V = np.arange(1, len(list_V) + 1) - lists.offsets[list_V]
    columns = [lists.query_ids.take(pa.array(list_V)), rank_V, lists.item_ids, lists.score_V]
    if lists.reason_V is not None:
        columns.append(lists.reason_V)
    table = pa.table(columns, names=_csv_columns(run))
    pcsv.write_csv(table, sink, pcsv.WriteOptions(include_header=False, quoting_style="needed"))


def _csv_columns(run: RunLists) -> list[str]:
    """The columns of the long layout."""
    return list(SCHEMAS[run.manifest.kind, "long"].names)
