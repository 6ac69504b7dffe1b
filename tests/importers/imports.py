"""Imports of small sources, and what an import has written."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from visrec.cli.summary import Summary
from visrec.pipelines.import_data import ImportDataJob, check, main

RATINGS = [
    ("1", "31", 2.5, 1260759144),
    ("1", "1029", 3.0, 1260759179),
    ("2", "31", 4.0, 835355493),
]


TITLES = {"31": "Dangerous Minds (1995)", "1029": 'Dumbo, "the" elephant (1941)'}
REVIEW = {"reviewerID": "A", "asin": "B1", "unixReviewTime": 1413763200, "overall": 4.0}
INTER = "user_id:token\titem_id:token\ttimestamp:float\n"


def imported(source: Path, kind: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The workspace after an import, and the rows of the summary."""
    job = ImportDataJob(workspace=str(tmp_path / "shop"), format=kind, path=str(source))
    check(job)
    summary = Summary("import_data")
    main(job, summary)
    return tmp_path / "shop", summary.rows


def rows(path: Path, *columns: str) -> list[tuple[Any, ...]]:
    table = pq.read_table(path)
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def titles(workspace: Path) -> dict[str, str]:
    return dict(rows(workspace / "items.parquet", "item_id", "title"))


def write(folder: Path, **files: str | bytes) -> Path:
    """A folder of files; two underscores in a name stand for a dot."""
    folder.mkdir()
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def movielens(tmp_path: Path, edition: str) -> Path:
    title, dumbo = TITLES["31"], TITLES["1029"]
    if edition == "latest":
        quoted = dumbo.replace('"', '""')
        return write(
            tmp_path / "ml",
            ratings__csv="userId,movieId,rating,timestamp\n"
            + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in RATINGS),
            movies__csv=f'movieId,title,genres\n31,{title},Drama|War\n1029,"{quoted}",Animation\n',
        )
    if edition == "1m":
        return write(
            tmp_path / "ml",
            ratings__dat="".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in RATINGS),
            movies__dat=f"31::{title}::Drama|War\n1029::{dumbo}::Animation\n".encode("latin-1"),
        )
    return write(
        tmp_path / "ml",
        u__data="".join(f"{u}\t{i}\t{r:g}\t{t}\n" for u, i, r, t in RATINGS),
        u__item=f"31|{title}|01-Jan-1995||x|0\n1029|{dumbo}|01-Jan-1941||x|1\n".encode("latin-1"),
    )


def pairs(workspace: Path) -> list[tuple[Any, ...]]:
    return rows(workspace / "interactions.parquet", "user_id", "item_id")


def json_lines(*objects: dict[str, Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


def gzipped_lines(*objects: dict[str, Any]) -> bytes:
    return gzip.compress(json_lines(*objects).encode())
