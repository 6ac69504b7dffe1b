"""MovieLens: https://grouplens.org/datasets/movielens/, each of its three formats.

- ml-latest, ml-32m: ratings.csv and movies.csv, with headers;
- ml-1m, ml-10m: ratings.dat and movies.dat, fields separated by two colons, Latin-1;
- ml-100k: u.data with tabs, u.item with bars, Latin-1.
"""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv as pacsv

from visrec.ids import TEXT
from visrec.importers.base import KEY, Imported, Source, first_of_list
from visrec.storage.schemas import INTERACTIONS, ITEMS, cast_columns, label_column

_RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_RATINGS = {"user_id": "userId", "item_id": "movieId"}


def read(source: Source) -> Imported:
    """The ratings as interactions; titles and first genres as items.

    Raises:
        InputError: there is no file of ratings.
    """
    ratings = source.require(
        "ratings.csv, ratings.dat or u.data of MovieLens",
        r"ratings\.csv(\.gz)?", r"ratings\.dat", r"u\.data",
    )  # fmt: skip
    movies = source.find(r"movies\.csv(\.gz)?", r"movies\.dat", r"u\.item")
    if ".csv" in ratings:
        columns = [column for column in INTERACTIONS if column.name in _RATING_COLUMNS]
        interactions = source.read(ratings, columns, _RATINGS)
    else:
        separator = b"::" if ratings.endswith(".dat") else b"\t"
        interactions = _without_header(source, ratings, separator)
    return Imported(
        interactions,
        _movies(source, movies) if movies else (),
        notes=("Every rating is an interaction; --interactions.min_rating drops bad ones.",),
    )


def _without_header(source: Source, name: str, separator: bytes) -> Iterator[pa.Table]:
    """Ratings in four columns without a header."""
    columns = [column for column in INTERACTIONS if column.name in _RATING_COLUMNS]
    for block in source.blocks(name):
        table = _parse(block.replace(separator, b"\t"))
        yield cast_columns(table, columns, f"{source.store.uri(name)} (--{KEY})")


def _movies(source: Source, name: str) -> Iterator[pa.Table]:
    """Movies with their titles; a movie's category is the first of its genres."""
    if ".csv" in name:
        columns = [*(c for c in ITEMS if c.name in ("item_id", "title")), label_column("genres")]
        for table in source.read(name, columns, {"item_id": "movieId"}):
            yield _with_category(table)
        return
    for block in source.blocks(name):
        text = block.decode("latin-1")
        if name.endswith(".dat"):
            rows = [line.split("::") for line in text.splitlines() if line.strip()]
            table = pa.table(
                {
                    "item_id": pa.array([row[0] for row in rows], TEXT),
                    "title": pa.array([row[1] for row in rows], TEXT),
                    "genres": pa.array([row[2] if len(row) > 2 else None for row in rows], TEXT),
                }
            )
            yield _with_category(table)
        else:
            rows = [line.split("|") for line in text.splitlines() if line.strip()]
            ids, titles = ([row[i] for row in rows] for i in (0, 1))
            yield pa.table({"item_id": pa.array(ids, TEXT), "title": pa.array(titles, TEXT)})


def _with_category(table: pa.Table) -> pa.Table:
    if "genres" not in table.column_names:
        return table
    return table.append_column("category", first_of_list(table["genres"], "|"))


def _parse(block: bytes) -> pa.Table:
    """Ratings with tabs as text."""
    return pacsv.read_csv(
        io.BytesIO(block),
        pacsv.ReadOptions(column_names=list(_RATING_COLUMNS)),
        pacsv.ParseOptions(delimiter="\t"),
        pacsv.ConvertOptions(
            column_types=dict.fromkeys(_RATING_COLUMNS, TEXT), strings_can_be_null=True
        ),
    )
