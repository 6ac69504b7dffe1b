"""Checks of a job's inputs before Ray starts: a misspelt path costs a second and creates nothing.

Each check is the first step of the reading that the job does later, so both find the same mistakes.
"""

from collections import Counter

from visrec.cli.job import JobConfig
from visrec.errors import InputError
from visrec.features.item_features import FeatureTables, ItemFeatures
from visrec.features.table import read_manifest
from visrec.models.artifact import MANIFEST
from visrec.sources.images import PictureSource, list_pictures
from visrec.sources.interactions import InteractionsConfig, read_until_cutoff
from visrec.storage.store import Store
from visrec.storage.table_files import find_table_files


def require_pictures(source: PictureSource) -> None:
    """Lists the first page of pictures.

    Raises:
        InputError: there is no picture.
    """
    next(list_pictures(source), None)


def require_interactions(config: InteractionsConfig, uri: str | None) -> None:
    """Reads the first interactions; does nothing for a job without interactions (None).

    Raises:
        InputError: there is no table, or its columns are not the declared ones.
    """
    if uri is not None:
        next(read_until_cutoff(config, uri, Counter()), None)


def require_features(
    kind: ItemFeatures, config: JobConfig, features: str | None, text_features: str | None
) -> None:
    """Reads the manifests of the features that a model takes.

    Args:
        kind: what it takes.
        config: of the job, whose workspace has the directories that are not named.
        features: the directory of the pictures' features, as configured.
        text_features: the directory of the texts' features, as configured.

    Raises:
        InputError: there is none.
    """
    tables = FeatureTables.of(
        kind,
        Store.at(config.resolve(features, "features")),
        Store.at(config.resolve(text_features, "text_features")),
    )
    for store in (tables.catalogue, tables.text):
        if store is not None:
            read_manifest(store)


def require_table(uri: str | None, key: str) -> None:
    """Lists the files of a table; does nothing if no table is configured (None).

    Raises:
        InputError: there are none.
    """
    if uri is not None:
        find_table_files(uri, key)


def require_model(store: Store) -> None:
    """Looks for the manifest of a model's directory.

    Raises:
        InputError: there is none.
    """
    if not store.exists(MANIFEST):
        raise InputError(
            f"Found no model at {store.root}; expected a directory that jobs/train.py wrote. "
            "Change --model.",
            path=store.root,
            key="model",
        )
