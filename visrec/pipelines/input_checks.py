"""Checks of a job's inputs before Ray starts: a misspelt path costs a second and creates nothing.

Each check is the first step of the reading that the job does later, so both find the same mistakes.
"""

from collections import Counter
from collections.abc import Sequence

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.errors import InputError
from visrec.features.item_features import FeatureTables, ItemFeatures
from visrec.features.table import read_manifest
from visrec.models.artifact import MODEL_MANIFEST
from visrec.sources.images import PictureSource, list_pictures
from visrec.sources.interactions import InteractionsConfig, read_usable_rows
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import BLOCKED, INTERACTIONS, ITEMS, USERS, Column
from visrec.storage.store import Store
from visrec.storage.table_descriptions import describe_table
from visrec.storage.tables import read_batches


def no_workspace_error(workspace: str, remedy: str) -> InputError:
    """The error of a command for which nothing is there to work on.

    Args:
        workspace: the workspace as configured.
        remedy: what to do, without a full stop.
    """
    return InputError(
        f"Found no folder {workspace}, or nothing in it; expected a workspace. {remedy}.",
        path=Store.at(workspace).root,
        key="workspace",
    )


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
        next(read_usable_rows(config, uri, Counter()), None)


def require_features(
    kind: ItemFeatures, config: JobConfig, features: str | None, text_features: str | None
) -> None:
    """Reads the manifests of the features that a model takes.

    Args:
        kind: what it takes.
        config: the configuration of the job, whose workspace has the directories that are not
            named.
        features: the directory of the pictures' features, as configured.
        text_features: the directory of the texts' features, as configured.

    Raises:
        InputError: the features are missing.
    """
    tables = FeatureTables.of(
        kind,
        Store.at(config.resolve(features, "features")),
        Store.at(config.resolve(text_features, "text_features")),
    )
    for store in (tables.catalogue, tables.text):
        if store is not None:
            read_manifest(store)


def require_table(table: InputTable | None, columns: Sequence[Column]) -> None:
    """Reads the first rows of a table; does nothing for None.

    Raises:
        InputError: there are no files, or their columns are not the declared ones.
    """
    if table is not None:
        next(read_batches(table, columns), None)


def announce_tables(
    config: InteractionsConfig,
    interactions_uri: str | None,
    items: InputTable | None = None,
    users: InputTable | None = None,
    blocked: InputTable | None = None,
) -> None:
    """Prints a line about each table that there is: how its files are written and read."""
    interactions = config.table(interactions_uri) if interactions_uri else None
    for name, table, columns in (
        ("interactions", interactions, INTERACTIONS),
        ("items", items, ITEMS),
        ("users", users, USERS),
        ("block list", blocked, BLOCKED),
    ):
        if table is not None:
            say(f"{name}: {describe_table(table, columns)}")


def require_model(store: Store) -> None:
    """Looks for the manifest of a model's directory.

    Raises:
        InputError: the model is missing.
    """
    if not store.exists(MODEL_MANIFEST):
        raise InputError(
            f"Found no model at {store.root}; expected a directory that `visrec train` wrote. "
            "Change --model.",
            path=store.root,
            key="model",
        )
