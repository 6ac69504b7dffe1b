"""What a job reads, looked at before Ray starts: a misspelt path costs a second and makes nothing.

Each look is the first step of the reading itself, so it finds what the job would find.
"""

from collections import Counter
from collections.abc import Iterator

from visrec.errors import InputError
from visrec.features.table import read_manifest
from visrec.models.artifact import MANIFEST
from visrec.sources.images import list_pictures
from visrec.sources.interactions import InteractionsConfig, read_known
from visrec.storage.store import Store
from visrec.storage.tables import table_files


def require_pictures(uri: str) -> None:
    """The first page of the listing.

    Raises:
        InputError: there is no picture.
    """
    _begin(list_pictures(uri))


def require_interactions(config: InteractionsConfig, uri: str | None) -> None:
    """The first rows, as they are read by every job; nothing where a job has none and needs none.

    Raises:
        InputError: there is no table, or it is not as declared.
    """
    if uri is not None:
        _begin(read_known(config, uri, Counter()))


def require_features(uri: str) -> None:
    """The manifest of the features.

    Raises:
        InputError: there is none.
    """
    read_manifest(Store.at(uri))


def require_table(uri: str | None, key: str) -> None:
    """The files of a table that was named.

    Raises:
        InputError: there are none.
    """
    if uri is not None:
        table_files(uri, key)


def require_model(store: Store) -> None:
    """The manifest of a model's directory.

    Raises:
        InputError: there is none.
    """
    if not store.exists(MANIFEST):
        raise InputError(
            f"Found no model at {store.root}; expected a directory that jobs/train.py wrote. "
            "Change --model."
        )


def _begin(rows: Iterator[object]) -> None:
    next(rows, None)
