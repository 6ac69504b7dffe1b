"""Removes users from everything that visrec wrote, and searches all files for what is left of them.

visrec forget --users leaving.txt --local
visrec forget --workspace s3://shop/visrec --users s3://shop/leaving.csv

Remove their interactions first, or tonight's run brings them back: the job says how many there are.
It can be started again at any time, and after a kill.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visrec.cli.job import JobConfig
from visrec.cli.output import say, warn
from visrec.cli.summary import Summary
from visrec.errors import ConflictError, InputError, StorageError, VisrecError
from visrec.evaluation import forget as evaluations
from visrec.evaluation.results import METRICS, PER_USER, REPORT
from visrec.exports.published import exported_targets
from visrec.exports.targets import parse_target
from visrec.features.table import FEATURES_MANIFEST, read_manifest
from visrec.ids import is_in
from visrec.interactions.prepared import PREPARED
from visrec.models import artifact
from visrec.pipelines.export import LEASES, export_to_each
from visrec.pipelines.forget_ids import read_user_ids
from visrec.pipelines.forget_search import (
    RUNS,
    SHOWN,
    Left,
    explain_ambiguous,
    search_for_users,
    shown,
    split_files,
)
from visrec.pipelines.input_checks import no_workspace_error, require_interactions
from visrec.pipelines.job_tables import find_interactions
from visrec.publication.forget import UsersToForget, forget_in_run, may_have_users, run_ids
from visrec.publication.run_spec import parse_part
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import schemas
from visrec.storage.id_search import IdSearch, list_all_files
from visrec.storage.input_table import InputTable
from visrec.storage.lease import Lease
from visrec.storage.store import Store
from visrec.storage.tables import read_batches
from visrec.tasks import call, map_calls

# Summaries that may name users: whose list was explained, users without rows.
_SUMMARIES = ("summaries/explain.json", "summaries/check.json")
_TEMPORARY = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{32}$")  # a temporary file while it is written
_TEMPORARY_AGE_S = 3600  # older temporary files belong to dead processes


@dataclass(frozen=True, kw_only=True)
class ForgetJob(JobConfig):
    """Removes users from what visrec wrote.

    Attributes:
        users: a text file with an id in each line, or a table with user_id.
        interactions: the table in which the remaining rows of these users are counted; the job does
            not change it.
        recommendations: another directory of runs, outside of the workspace.
        export_to: list of targets, as --to of `visrec export` takes them, that hold the lists of
            the workspace's published run: it is exported again, without these users.
    """

    users: str = ""
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    recommendations: str | None = None
    export_to: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.users:
            raise InputError(
                "Found no --users; expected a text file with an id in each line, or a table with "
                "user_id.",
                key="users",
            )


def check(config: ForgetJob) -> None:
    if config.recommendations is None and not any(list_all_files(Store.at(config.workspace))):
        raise no_workspace_error(config.workspace, "Change --workspace")
    read_user_ids(config.users)
    # Counted last; a wrong column must not be found after everything else was removed.
    require_interactions(config.interactions, find_interactions(config, config.interactions))
    for url in config.export_to:
        parse_target(url)


def main(config: ForgetJob, summary: Summary) -> None:
    """Removes the users from models, evaluations and runs; then searches all files for them."""
    user_ids = read_user_ids(config.users)
    workspace = Store.at(config.workspace)
    extra_runs = [Store.at(config.recommendations)] if config.recommendations else []
    workspace.check_writable()
    with Lease(workspace / "nights", "forget.lease", on_wait=say) as lease:
        if not lease.held:
            raise ConflictError(
                f"Another process is removing users from {workspace.root}: {lease.holder}. Nothing "
                "was done here. Start this command again when that process has ended."
            )
        _forget(config, user_ids, extra_runs, summary)


def _forget(
    config: ForgetJob, user_ids: pa.Array, extra_runs: Sequence[Store], summary: Summary
) -> None:
    workspace = Store.at(config.workspace)
    summary.has_written = True
    failures: list[VisrecError] = []
    with summary.phase("find"):
        written = [workspace / name for name in ("models", "evaluation", RUNS[0])]
        known_ids = _find_users([*written, *extra_runs], user_ids)
    with summary.phase("models"):
        rows, digests = _forget_in_models(workspace, user_ids, failures)
    with summary.phase("evaluations"):
        metrics = _forget_in_evaluations(workspace, user_ids, digests, failures)
    with summary.phase("runs"):
        runs = [*(workspace / name for name in RUNS), *extra_runs]
        forgotten = UsersToForget(user_ids=user_ids, model_digests=digests)
        tasks = [(store, run_id, forgotten) for store in runs for run_id in run_ids(store)]
        lists = sum(_map_all(forget_in_run, tasks, failures))
    with summary.phase("export"):
        exported, not_exported = _export_again(config)
    with summary.phase("remove"):
        removed = _remove_unfinished(workspace, extra_runs)
    with summary.phase("search"):
        in_source, source_ids = _count_interactions(config, user_ids)
        known_ids |= source_ids
        unknown_ids = [user_id for user_id in user_ids.to_pylist() if user_id not in known_ids]
        search = IdSearch(user_ids.to_pylist(), _ids_of_items(workspace, user_ids, failures))
        left = search_for_users(search, workspace, extra_runs, config.users)
    summary.rows = {
        "users": len(user_ids),
        "users found nowhere": len(unknown_ids),
        "lists removed": lists,
        "runs examined": len(tasks),
        "rows of models removed": rows,
        "rows of metrics removed": metrics,
        "checkpoints and unfinished files removed": removed,
        **exported,
        **_search_rows(left, search, in_source),
    }
    if unknown_ids:
        _warn_of_unknown(unknown_ids, len(user_ids))
    if remaining := _what_remains(left, failures, not_exported):
        raise VisrecError(f"{' '.join(remaining)} Everything else is done.")


def _warn_of_unknown(unknown_ids: Sequence[str], users: int) -> None:
    """Tells which users were found nowhere; the summary must not name persons who have left."""
    warn(
        f"{len(unknown_ids):,} of {users:,} users are in no interactions, model, list or "
        f"evaluation: {shown(unknown_ids)}. Unless they were removed before, compare these ids "
        "with those of your interactions."
    )


def _search_rows(left: Left, search: IdSearch, in_source: str) -> dict[str, object]:
    """Rows of the summary about what is left; a run in which visrec's own files have ids fails."""
    return {
        "files searched": left.searched,
        "searched in columns of users only": explain_ambiguous(search),
        "found in what visrec wrote": "nothing",
        "interactions still there": in_source,
        "found in files of yours": shown(left.users_files_with_ids),
        "files of yours that could not be searched": shown(left.users_files_not_searched),
    }


def _what_remains(
    left: Left, failures: Sequence[VisrecError], not_exported: Sequence[str]
) -> list[str]:
    """Sentences on what could not be removed, and what to do about it."""
    remaining = [
        f"{len(names):,} files {fault}: {shown(names)}. If a job was at work meanwhile, start "
        "this one again when it has ended; else remove these files."
        for names, fault in (
            (left.own_files_with_ids, "still name some of the users"),
            (left.own_files_not_searched, "that visrec wrote could not be searched"),
        )
        if names
    ]
    remaining += [str(error) for error in failures[:SHOWN]]
    if len(failures) > SHOWN:
        remaining.append(f"The same goes for {len(failures) - SHOWN:,} more places.")
    if not_exported:
        remaining.append(
            f"The lists could not be exported to {', '.join(not_exported)}; the messages above say "
            "why. Lists of the users may still be there: start this command again."
        )
    return remaining


# What visrec wrote.


def _find_users(stores: Sequence[Store], user_ids: pa.Array) -> set[str]:
    """Those of the users who are in a table of these stores."""
    files = [
        (store, entry.name)
        for store in stores
        for entry in store.list()
        if entry.name.endswith(".parquet") and not _is_part_of_others(entry.name, user_ids)
    ]
    calls = [(share, user_ids) for share in split_files(files)]
    return set[str]().union(*map_calls(_users_in, calls))


def _is_part_of_others(name: str, user_ids: pa.Array) -> bool:
    """Whether a file is one of a run whose name says that it has none of the users."""
    file = name.rpartition("/")[2]
    return parse_part(file) is not None and not may_have_users(file, user_ids)


def _users_in(files: Sequence[tuple[Store, str]], user_ids: pa.Array) -> set[str]:
    found = set[str]()
    for store, name in files:
        with suppress(VisrecError, OSError, pa.ArrowException):  # a damaged one is told later
            table = store.read_table(name, ["user_id"])
            if table.column_names:  # items have no such column
                ids = table["user_id"]
                found |= set(ids.filter(is_in(ids, user_ids)).to_pylist())
    return found


def _map_all(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], failures: list[VisrecError]
) -> list[Any]:
    """The results of the calls that succeed, in as many tasks.

    A file that is damaged must not keep users in all others, so the errors of the other calls are
    added to failures.
    """
    results = map_calls(_result_or_error, [(function, *arguments) for arguments in calls])
    failures += [result for result in results if isinstance(result, VisrecError)]
    return [result for result in results if not isinstance(result, VisrecError)]


def _result_or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except VisrecError as error:
        return error


def _forget_in_models(
    workspace: Store, user_ids: pa.Array, failures: list[VisrecError]
) -> tuple[int, dict[str, str]]:
    """The number of removed rows, and a map from each model's earlier digests to its present
    digest."""
    models = workspace / "models"
    names = [n for n in _folders_with(models, artifact.MODEL_MANIFEST) if n]
    results = _map_all(_forget_in_model, [(models / name, user_ids) for name in names], failures)
    digests = {old: new for _, earlier, new in results for old in earlier}
    _map_all(_renew_latest, [(models, digests)], failures)
    return sum(removed for removed, _, _ in results), digests


def _forget_in_model(model: Store, user_ids: pa.Array) -> tuple[int, list[str], str]:
    """How many rows were removed, the model's earlier digests, and its present one."""
    removed = artifact.forget_users(model, user_ids)
    return removed, artifact.earlier_digests(model), artifact.read_digest(model)


def _renew_latest(models: Store, digests: Mapping[str, str]) -> None:
    """Records the present digest of the model that was trained last.

    Raises:
        InputError: the file that names it is damaged.
    """
    if not models.exists(artifact.LATEST):
        return
    latest = models.read_json(artifact.LATEST)
    if not isinstance(latest, dict) or not isinstance(latest.get("digest"), str):
        raise InputError(
            f"{models.uri(artifact.LATEST)} is damaged; expected the model_id and digest of the "
            "model that was trained last. Train again, which writes the file.",
            path=models.uri(artifact.LATEST),
        )
    if latest["digest"] in digests:
        models.write_json(artifact.LATEST, {**latest, "digest": digests[latest["digest"]]})


def _forget_in_evaluations(
    workspace: Store, user_ids: pa.Array, digests: Mapping[str, str], failures: list[VisrecError]
) -> int:
    """How many rows of metrics were removed."""
    folder = workspace / "evaluation"
    # One that was interrupted may have any of its files.
    names = _folders_with(folder, METRICS, PER_USER, REPORT)
    stores = [folder / name if name else folder for name in names]
    calls = [(store, user_ids, digests) for store in stores]
    return sum(_map_all(evaluations.forget_users, calls, failures))


def _folders_with(store: Store, *names: str) -> list[str]:
    """The folders below a store that have a file of these names; "" for the store itself."""
    paths = [entry.name.rpartition("/") for entry in store.list()]
    return sorted({folder for folder, _, last in paths if last in names})


def _export_again(config: ForgetJob) -> tuple[dict[str, str], list[str]]:
    """Exports the lists without the users to --export_to, and warns of other targets.

    Returns:
        What became of each target, for the summary, and the targets that failed.
    """
    workspace = Store.at(config.workspace)
    leases = workspace / LEASES
    rows, failed = export_to_each(config.export_to, workspace / RUNS[0], leases)
    named = {parse_target(url).shown for url in config.export_to}
    if others := [target for target in exported_targets(leases) if target not in named]:
        rows["exported before, and not now"] = shown(others)
        warn(
            f"Lists were exported to {shown(others)}, which may still have these users. Export "
            "them again without the users (--export_to), or remove the users there."
        )
    return rows, failed


def _remove_unfinished(workspace: Store, extra_runs: Sequence[Store]) -> int:
    """Removes what is made again when it is needed, or never; returns how many files of trainings
    and of killed processes."""
    (workspace / PREPARED).abort_uploads()
    (workspace / PREPARED).delete_all()
    workspace.delete(_SUMMARIES)
    return _remove_checkpoints(workspace) + _remove_temporary_files([workspace, *extra_runs])


def _remove_checkpoints(workspace: Store) -> int:
    """Removes checkpoints, which have the vectors of users, and returns how many files.

    A finished model needs none. An unfinished training starts over anyway, once the interactions
    have changed.
    """
    names = [entry.name for entry in (workspace / "training").list()]
    sweeps = [entry.name for entry in (workspace / "sweeps").list()]
    trials = [name for name in sweeps if name.split("/")[1:2] == ["training"]]
    (workspace / "training").delete(names)
    (workspace / "sweeps").delete(trials)
    return len(names) + len(trials)


def _remove_temporary_files(stores: Sequence[Store]) -> int:
    """Removes temporary files of killed processes; returns how many."""
    removed = 0
    for store in stores:
        old = [
            file.name
            for file in list_all_files(store)
            if _TEMPORARY.search(file.name) and file.modified < time.time() - _TEMPORARY_AGE_S
        ]
        store.delete(old)
        removed += len(old)
    return removed


# What is left.


def _count_interactions(config: ForgetJob, user_ids: pa.Array) -> tuple[str, set[str]]:
    """How many interactions of the users are still there, and the users who have any."""
    uri = find_interactions(config, config.interactions)
    if uri is None:
        return "unknown: found no interactions (--interactions.path)", set()
    try:
        rows, present_ids = call(_count_rows, config.interactions.table(uri), user_ids)
    except (InputError, StorageError) as error:
        return f"unknown: {error}", set()
    if not rows:
        return f"none in {uri}", set()
    found = f"{rows:,} of {len(present_ids):,} users in {uri}"
    return f"{found}: remove them, or tonight's run brings them back", present_ids


def _count_rows(table: InputTable, user_ids: pa.Array) -> tuple[int, set[str]]:
    """Rows of the users, and the users who have any."""
    rows = 0
    present_ids = set[str]()
    for batch in read_batches(table, schemas.INTERACTIONS):
        ids = batch["user_id"].filter(is_in(batch["user_id"], user_ids))
        rows += len(ids)
        present_ids |= set(pc.unique(ids).to_pylist())
    return rows, present_ids


def _ids_of_items(workspace: Store, user_ids: pa.Array, failures: list[VisrecError]) -> list[str]:
    """The users' ids that are also item ids, of items with a picture or a text."""
    stores = [(workspace / name,) for name in ("features", "text_features")]
    files = [file for found in _map_all(_feature_files, stores, failures) for file in found]
    ids_by_file = _map_all(_ids_in, [(*file, user_ids) for file in files], failures)
    return sorted({user_id for ids in ids_by_file for user_id in ids})


def _feature_files(features: Store) -> list[tuple[Store, str]]:
    if not features.exists(FEATURES_MANIFEST):
        return []
    return [(features, name) for name in read_manifest(features).files]


def _ids_in(features: Store, name: str, user_ids: pa.Array) -> list[str]:
    ids = features.read_table(name, ["item_id"])["item_id"]
    return list(ids.filter(is_in(ids, user_ids)).to_pylist())
