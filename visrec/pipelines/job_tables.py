"""Where a job finds its tables: as configured, or by their names in the workspace."""

from collections.abc import Mapping

from visrec.cli.job import JobConfig
from visrec.interactions.prepared import PREPARED
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import schemas
from visrec.storage.input_table import InputTable, check_mapping
from visrec.storage.store import Store
from visrec.storage.workspace_tables import missing_table
from visrec.tasks import on_ray


def interactions_uri(job: JobConfig, config: InteractionsConfig) -> str:
    """The location of the interactions.

    Raises:
        InputError: there are none, or several tables of that name.
    """
    uri = find_interactions(job, config)
    if uri is None:
        raise missing_table(Store.at(job.workspace), "interactions", "interactions.path")
    return uri


def find_interactions(job: JobConfig, config: InteractionsConfig) -> str | None:
    """The location of the interactions; None without any."""
    return job.find_table(config.path, "interactions", "interactions.path")


def prepared_store(job: JobConfig) -> Store | None:
    """Where interactions are prepared for the tasks of a cluster; None for a local job without Ray,
    which reads them as they are."""
    return Store.at(job.workspace) / PREPARED if on_ray() else None


def items_table(job: JobConfig, path: str | None, columns: Mapping[str, str]) -> InputTable | None:
    """The items table with the names of its columns, None without one.

    Raises:
        InputError: there are several, or `columns` names a column that no items table has.
    """
    check_mapping(columns, (*schemas.ITEMS, *schemas.TEXTS), "items_columns")
    return _table(job.find_table(path, "items", "items"), "items", columns)


def users_table(job: JobConfig, path: str | None, columns: Mapping[str, str]) -> InputTable | None:
    """The users table; raises as `items_table`."""
    check_mapping(columns, schemas.USERS, "users_columns")
    return _table(job.find_table(path, "users", "users"), "users", columns)


def _table(uri: str | None, key: str, columns: Mapping[str, str]) -> InputTable | None:
    if uri is None:
        return None
    return InputTable(uri=uri, key=key, columns=columns, columns_key=f"{key}_columns")
