"""MovieLens: https://grouplens.org/datasets/movielens/, each of its three formats.

- ml-latest, ml-32m: ratings.csv and movies.csv, with headers;
- ml-1m, ml-10m: ratings.dat and movies.dat, fields separated by two colons;
- ml-100k: u.data with tabs, u.item with bars.

ml-10m is in UTF-8, ml-1m and ml-100k are in Latin-1.
"""

import io
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv as pacsv

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.importers.base import KEY, Imported, Source, first_of_list
from visrec.storage.schemas import INTERACTIONS, ITEMS, cast_columns, label_column
from visrec.storage.table_files import table_errors

_RATINGS_FILE = r"ratings\.csv(\.gz)?|ratings\.dat|u\.data"
_MOVIES_FILE = r"movies\.csv(\.gz)?|movies\.dat|u\.item"
_EDITION = re.compile(r"(.*/)?(?:(?:ratings|movies)\.(csv|dat)(?:\.gz)?|u\..*)", re.IGNORECASE)
_RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_RATINGS = {"user_id": "userId", "item_id": "movieId"}


def read(source: Source) -> Imported:
    """The ratings as interactions; titles and first genres as items.

    Raises:
        InputError: there is no file of ratings, or the files are of several editions.
    """
    ratings = source.require_all(_RATINGS_FILE, "ratings.csv, ratings.dat or u.data of MovieLens")
    movies = source.find_all(_MOVIES_FILE)
    if len(ratings) > 1 or len(movies) > 1 or len({*map(_edition, ratings + movies)}) > 1:
        raise source.refuse(ratings + movies, "the ratings and the movies of one edition")
    return Imported(
        _ratings(source, ratings[0]),
        _movies(source, movies[0]) if movies else (),
        notes=("Every rating is an interaction; --interactions.min_rating drops bad ones.",),
    )


def _edition(name: str) -> tuple[str, str]:
    """What the files of one edition share: their folder, and csv, dat, or nothing for ml-100k."""
    match = _EDITION.fullmatch(name)
    folder, kind = match.groups("") if match else ("", "")
    return folder, kind.lower()


def _ratings(source: Source, name: str) -> Iterator[pa.Table]:
    columns = [column for column in INTERACTIONS if column.name in _RATING_COLUMNS]
    kind = _edition(name)[1]
    if kind == "csv":
        yield from source.read(name, columns, _RATINGS)
        return
    separator = b"::" if kind == "dat" else b"\t"
    for block in source.line_blocks(name):
        with table_errors(source.where(name)):
            table = _parse(block.replace(separator, b"\t"))
        yield cast_columns(table, columns, source.where(name))


def _movies(source: Source, name: str) -> Iterator[pa.Table]:
    """Movies with their titles; a movie's category is the first of its genres."""
    kind = _edition(name)[1]
    if kind == "csv":
        columns = [*(c for c in ITEMS if c.name in ("item_id", "title")), label_column("genres")]
        for table in source.read(name, columns, {"item_id": "movieId"}):
            yield _with_category(table)
        return
    separator = "::" if kind == "dat" else "|"
    rows = [line.split(separator) for line in source.lines(name)]
    short = next((row for row in rows if len(row) < 2), None)
    if short is not None:
        raise InputError(
            f"{source.where(name)} has the line {short[0][:60]!r}; expected the fields of a movie, "
            f"separated by {separator}.",
            key=KEY,
        )
    table = pa.table({"item_id": [row[0] for row in rows], "title": [row[1] for row in rows]})
    if kind == "dat":
        genres = [row[2] if len(row) > 2 else None for row in rows]
        table = table.append_column("genres", pa.array(genres, TEXT))
    yield _with_category(cast_columns(table, [*ITEMS, label_column("genres")], source.where(name)))


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
