"""Shows what a workspace has before anything runs: rows that count, ids that match, a night's time.

visrec check shop
visrec check shop --interactions.columns '{user_id: customer_email, item_id: sku}'
visrec check s3://shop/visrec --interactions.path s3://shop/orders.csv.gz

The command needs no Ray and writes nothing but its summary. Exit code 0 means that a night can run.
Exit code 2 means that a job would refuse the data. The message then lists all faults, including
those that show only after other keys are set: the check continues with the keys that `visrec init`
would propose.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visrec.cli.job import ModelChoice
from visrec.cli.parse import parse_in_workspace
from visrec.cli.summary import Summary
from visrec.cli.workspace_keys import AS_OF_KEY
from visrec.cores import usable_cores
from visrec.errors import InputError, extended_errors
from visrec.ids import DistinctIds, index_in
from visrec.importers.retail import cancellation_columns
from visrec.interactions.log import InteractionLog
from visrec.interactions.split import SplitConfig
from visrec.pipelines.check_facts import (
    Catalogue,
    ReadRows,
    compare_ids,
    held_out_facts,
    read_blocked,
    read_catalogue,
    read_rows,
    read_text_catalogue,
    rename_reasons,
    table_ids,
    users_by_baskets,
)
from visrec.pipelines.extract_features import ExtractJob, takes_pictures, texts_table
from visrec.pipelines.job_tables import interactions_uri, items_table, users_table
from visrec.pipelines.night_command import changed_keys, flag, visrec_command
from visrec.pipelines.night_estimate import NightSize, format_duration
from visrec.pipelines.night_prediction import Prediction, predict_served
from visrec.pipelines.proposals import (
    DataJob,
    Proposal,
    propose,
    propose_optional,
    with_proposals,
)
from visrec.recommend.eligibility import recommendable_mask
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.interactions import FUTURE, read_until_cutoff
from visrec.sources.items import read_items
from visrec.storage import schemas
from visrec.storage.arrow_values import NULL_WORDS
from visrec.storage.store import Store
from visrec.storage.table_descriptions import describe_table, describe_times
from visrec.storage.tables import column_names

_ONE_YEAR = 365 * 86_400
_MIN_MATCHED = 0.5  # of the rows; with fewer, ids are probably written differently


@dataclass(frozen=True, kw_only=True)
class CheckJob(DataJob):
    """What is in a workspace.

    Attributes:
        split: what a training would hold out.
    """

    split: SplitConfig = field(default_factory=SplitConfig)


def main(config: CheckJob, summary: Summary) -> None:
    workspace = Store.at(config.workspace)
    is_empty = not any(True for _ in workspace.list())
    if is_empty and config.images is None and config.interactions.path is None:
        raise InputError(
            f"Found no folder {config.workspace}, or nothing in it; expected a workspace. Change "
            "--workspace, or name your data with --images and --interactions.path.",
            path=workspace.root,
            key="workspace",
        )
    findings = examine(config, summary)
    proposals = propose(config) if findings.problems else propose_optional(config)
    needed = [proposal for proposal in proposals if proposal.is_needed]
    if findings.problems and needed:
        config = with_proposals(config, needed)
        findings = findings.merge_proposed(needed, examine(config, summary))
    findings.remarks += [
        f"Optional: {flag(p.key, p.value)} ({p.why})." for p in proposals if not p.is_needed
    ]
    if not findings.problems or findings.solution:
        defaults = parse_in_workspace(CheckJob, ["--workspace", config.workspace])
        keys = dict(changed_keys(config, defaults))
        as_of = keys.pop(AS_OF_KEY, None)
        findings.rows["command"] = visrec_command(
            "nightly", config.workspace, "--local", **({"as_of": as_of} if as_of else {}), **keys
        )
    findings.report(None if is_empty else workspace, summary)


def examine(config: CheckJob, summary: Summary) -> "Findings":
    """The facts of the data, and what is wrong with them."""
    findings, seen = Findings(), ReadRows()
    catalogue, pictures = _examine_catalogue(config, summary, findings)
    log = _examine_interactions(config, summary, findings, catalogue, seen)
    users = _examine_tables(config, summary, findings, catalogue, seen)
    if catalogue is not None and log is not None:
        with findings.refusals():
            _predict(config, findings, catalogue, pictures, users, log)
    return findings


def _examine_catalogue(
    config: CheckJob, summary: Summary, findings: "Findings"
) -> tuple[Catalogue | None, Catalogue | None]:
    """The items that can be recommended, and those with a picture or an imported feature.

    Either is None if a job would refuse it; the second also if no job reads the pictures.
    """
    catalogue: Catalogue | None = None
    pictures: Catalogue | None = None
    extraction = _extraction(config)
    texts_only = config.item_features == "text"
    with_import_hint = extended_errors(lambda _: _propose_import(config))
    if not texts_only or takes_pictures(extraction):
        with summary.phase("pictures"), findings.refusals(), with_import_hint:
            features = Store.at(config.resolve(config.features, "features"))
            pictures = read_catalogue(extraction.pictures, features)
            findings.rows |= _catalogue_rows(pictures, extraction.pictures.uri)
            catalogue = None if texts_only else pictures
    if config.item_features != "pictures":
        with summary.phase("texts"), findings.refusals():
            text_features = Store.at(config.resolve(config.text_features, "text_features"))
            table = None if config.text.model is None else texts_table(extraction)
            texts = read_text_catalogue(table, text_features)
            findings.rows["texts"] = f"{len(texts.ids):,}, of which {texts.with_feature:,} embedded"
            catalogue = texts if texts_only else catalogue
            if catalogue is not None and not texts_only:
                without = compare_ids(catalogue.ids, texts.ids, "items")
                findings.rows["items without a text"] = without
    return catalogue, pictures


def _examine_interactions(
    config: CheckJob,
    summary: Summary,
    findings: "Findings",
    catalogue: Catalogue | None,
    seen: ReadRows,
) -> InteractionLog | None:
    """The interactions that count; None without a catalogue, or if a job would refuse them.

    Args:
        config: the configuration of the job.
        summary: receives the time.
        findings: receives the facts, and what a job would refuse.
        catalogue: the items that can be recommended.
        seen: records the rows that are read.
    """
    log: InteractionLog | None = None
    time_format = ""
    with summary.phase("interactions"), findings.refusals():
        uri = interactions_uri(config, config.interactions)
        table = config.interactions.table(uri)
        findings.rows["interactions"] = describe_table(table, schemas.INTERACTIONS)
        if columns := cancellation_columns(column_names(table)):
            findings.remarks.append(
                f"Cancelled and refunded orders ({', '.join(columns)}) count as interactions. "
                "`visrec import retail PATH` writes a workspace without them."
            )
        time_format = describe_times(table, schemas.INTERACTIONS)
        log = _read_log(config, uri, catalogue, seen)
    findings.rows |= _interaction_rows(seen, log, catalogue)
    findings.remarks += _remarks(seen, log, time_format, catalogue)
    if log is not None:
        with findings.refusals():
            held_out = held_out_facts(log, config.split)
            findings.rows["held out"] = held_out.counts
            findings.remarks += held_out.notes
    return log


def _examine_tables(
    config: CheckJob,
    summary: Summary,
    findings: "Findings",
    catalogue: Catalogue | None,
    seen: ReadRows,
) -> DistinctIds:
    """Examines the other tables; returns all users of the interactions and of the users table."""
    with summary.phase("items"), findings.refusals():
        findings.rows |= _items_rows(config, catalogue)
    users = DistinctIds()
    users.add(seen.users.ids)
    with summary.phase("users"), findings.refusals():
        findings.rows |= _users_rows(config, seen, users)
    with summary.phase("rules"), findings.refusals():
        findings.rows |= _rules_rows(config, catalogue, users)
    return users


def _predict(
    config: CheckJob,
    findings: "Findings",
    catalogue: Catalogue,
    pictures: Catalogue | None,
    users: DistinctIds,
    log: InteractionLog,
) -> None:
    """Adds which model would serve the night, and how long the night would take.

    Args:
        config: the configuration of the job.
        findings: receives both.
        catalogue: the items that can be recommended.
        pictures: those with a picture or an imported feature; None if pictures are not read.
        users: all who would get a list.
        log: the interactions that count.
    """
    night = datetime.now(UTC).date()
    if cutoff := config.interactions.cutoff_timestamp():
        night = datetime.fromtimestamp(cutoff, UTC).date()
    served = predict_served(log, len(catalogue.ids), config.split, night)
    findings.rows["tonight serves"] = served.sentence
    held_out_counts = findings.rows.get("held out", {})
    findings.rows["a night takes"] = _estimate(
        len(catalogue.ids), pictures, len(users.ids), held_out_counts, served
    )


def _extraction(config: CheckJob) -> ExtractJob:
    """The extraction of a night with these keys."""
    names = ("images", "image_pattern", "features", "items", "items_columns", "text")
    keys = {name: getattr(config, name) for name in names}
    return ExtractJob(workspace=config.workspace, **keys)


class Findings:
    """Collects the facts and what is wrong with them.

    Attributes:
        rows: rows of the summary, with any values that JSON can hold.
        problems: the errors with which a job would refuse the data.
        remarks: what a user should know, although jobs run.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.problems: list[InputError] = []
        self.remarks: list[str] = []
        self.solution = ""  # a sentence on what solves all problems

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Collects what a job would refuse, so that the check goes on."""
        try:
            yield
        except InputError as error:
            # Without its traceback, which would keep the data in memory.
            self.problems.append(InputError(str(error)))

    def merge_proposed(self, proposals: Sequence[Proposal], after: "Findings") -> "Findings":
        """The findings of the check with proposed keys, preceded by these problems.

        The message of a problem that a proposed key solves ends with the proposal.

        Args:
            proposals: the keys.
            after: what the check with these keys found.
        """
        problems = list(self.problems)
        for proposal in proposals:
            words = flag(proposal.key, proposal.value)
            if any(words in str(problem) for problem in problems):
                continue  # the message has the proposal already
            solved = next((n for n, p in enumerate(problems) if proposal.key in p.keys), None)
            if solved is None:
                problems.append(InputError(f"The data need {words}: {proposal.why}."))
                continue
            text = str(problems[solved]).removesuffix(".")
            problems[solved] = InputError(f"{text}. Proposed: {words}.")
        merged = Findings()
        merged.rows, merged.remarks = after.rows, after.remarks
        merged.problems = [*problems, *after.problems]
        if not after.problems:
            merged.solution = "`visrec init` writes keys with which a night can run."
        return merged

    def report(self, workspace: Store | None, summary: Summary) -> None:
        """Puts the facts into the summary.

        If a job would refuse the data, it also prints the summary, and writes it, because the job
        ends here.

        Args:
            workspace: where it is written; None for nowhere.
            summary: receives the facts.

        Raises:
            InputError: a job would refuse the data.
        """
        summary.rows = dict(self.rows)
        if self.remarks:
            summary.rows["remarks"] = " ".join(dict.fromkeys(self.remarks))
        problems = list(dict.fromkeys(map(str, self.problems)))
        if not problems:
            summary.rows["verdict"] = "ready: a night can run"
            return
        count = f"{len(problems)} fault{'s' if len(problems) > 1 else ''}"
        summary.rows["verdict"] = f"not ready: {count}, see below"
        summary.print()
        summary.rows["problems"] = problems
        if workspace is not None:
            summary.write_if_possible(workspace)
        if len(problems) > 1:
            numbered = [f"({n}) {problem}" for n, problem in enumerate(problems, 1)]
            problems = [f"{count}.", *numbered]
        raise InputError(" ".join([*problems, self.solution]).strip())


def _propose_import(config: CheckJob) -> str:
    """Text to append to an error about pictures: how to import existing features; empty if there
    are none."""
    if config.resolve_file_if_exists(None, "features.parquet") is None:
        return ""
    command = visrec_command("import-features", config.workspace, "--backbone", "NAME")
    return (
        f" Or import features.parquet, which is in the workspace: {command}, with the name of the "
        "network that computed the features."
    )


def _catalogue_rows(catalogue: Catalogue, images: str) -> dict[str, Any]:
    if catalogue.noun == "feature":
        return {"features": f"{catalogue.with_feature:,}, imported"}
    items = len(catalogue.ids)
    per_item = f" of {items:,} items" if items != catalogue.pictures else ""
    skipped = f"; not pictures: {catalogue.skipped}" if str(catalogue.skipped) else ""
    return {"pictures": f"{catalogue.pictures:,}{per_item} at {images}{skipped}"}


def _read_log(
    config: CheckJob, uri: str, catalogue: Catalogue | None, seen: ReadRows
) -> InteractionLog | None:
    """The interactions as a training reads them; without a catalogue they are only counted.

    Raises:
        InputError: a job would refuse them.
    """
    if catalogue is None:
        for _ in seen.watch(read_until_cutoff(config.interactions, uri, seen.left_out)):
            pass
        return None
    try:
        return read_rows(config.interactions, uri, catalogue.ids, seen)
    except InputError as error:
        items = seen.items.ids
        if not len(items) or index_in(items, catalogue.ids).max() >= 0:
            raise
        table = "The table of interactions"
        raise InputError(
            f"None of the {len(items):,} items of the interactions has a {catalogue.noun}; "
            "expected the same ids. "
            f"{explain_id_mismatch(items, table, catalogue.ids, f'the {catalogue.noun}s')}"
        ) from error


def _interaction_rows(
    seen: ReadRows, log: InteractionLog | None, catalogue: Catalogue | None
) -> dict[str, Any]:
    if seen.period is None:
        return {}
    summary_rows: dict[str, Any] = {
        "period": seen.period,
        "users": len(seen.users.ids),
        "items": len(seen.items.ids),
    }
    if log is None or catalogue is None:
        return summary_rows
    noun = catalogue.noun
    items = seen.items.ids
    return {
        "rows": log.read_report.rows,
        **summary_rows,
        "rows left out": rename_reasons(log.read_report.left_out, noun),
        "users by baskets": users_by_baskets(log),
        f"items without {noun}": compare_ids(items, catalogue.ids, "items of the interactions"),
        f"{noun}s never taken": compare_ids(catalogue.ids, items, "items"),
    }


def _remarks(
    seen: ReadRows, log: InteractionLog | None, time_format: str, catalogue: Catalogue | None
) -> Iterator[str]:
    """What a user should know, although jobs run.

    Args:
        seen: what is read of the interactions.
        log: those that count; None if a job would refuse them.
        time_format: how the timestamps are written, in words.
        catalogue: the items that can be recommended; None without `log`.
    """
    if seen.last is not None and seen.last < _ONE_YEAR:
        yield (
            f"All timestamps, read as {time_format}, lie in 1970 ({seen.period}): are they times? "
            "Name another column with --interactions.columns."
        )
    if future := seen.left_out[FUTURE]:
        yield (
            f"{future:,} rows are dated after today, {datetime.now(UTC):%Y-%m-%d} in UTC, and are "
            f"left out. Timestamps are read as {time_format}."
        )
    if log is None or catalogue is None:
        return
    without, read = log.read_report.dropped_missing_feature, log.read_report.rows
    if without > (1 - _MIN_MATCHED) * read:
        noun = catalogue.noun
        yield f"{without:,} of {read:,} rows are of items without a {noun} and are left out."
    if len(log.items) and log.items.lengths.max() < 2:
        yield (
            f"No user took two items with a {catalogue.noun}, so no model can be trained: VisRank "
            "serves, which needs no training."
        )
    for column, ids in (("user_id", seen.users.ids), ("item_id", seen.items.ids)):
        words = ids.filter(pc.is_in(ids, value_set=pa.array(NULL_WORDS, ids.type))).to_pylist()
        if words:
            yield (
                f"There is the {column} {' and '.join(map(repr, words))}, which looks like a null "
                "that became text. If it is one, leave it blank, so that its rows are left out."
            )


def _items_rows(config: CheckJob, catalogue: Catalogue | None) -> dict[str, Any]:
    """Summary rows about the items table; none without one.

    Raises:
        InputError: a job would refuse it.
    """
    table = items_table(config, config.items, config.items_columns)
    if table is None:
        return {}
    summary_rows: dict[str, Any] = {"items table": describe_table(table, schemas.ITEMS)}
    if catalogue is None:
        return summary_rows
    ids = table_ids(table, schemas.ITEMS[0])
    available = int(read_items(table, catalogue.ids).available_N.sum())
    return {
        **summary_rows,
        "available": f"{available:,} of {len(catalogue.ids):,} items with a {catalogue.noun}",
        f"rows without {catalogue.noun}": compare_ids(ids, catalogue.ids, "items of the table"),
        f"{catalogue.noun}s without row": compare_ids(catalogue.ids, ids, "items"),
    }


def _users_rows(config: CheckJob, seen: ReadRows, everyone: DistinctIds) -> dict[str, Any]:
    """Summary rows about the users table; adds its users to `everyone`."""
    table = users_table(config, config.users, config.users_columns)
    if table is None:
        return {}
    ids = table_ids(table, schemas.USERS[0])
    everyone.add(ids)
    taken = seen.users.ids
    return {
        "users table": describe_table(table, schemas.USERS),
        "users without rows": compare_ids(ids, taken, "users of the table"),
    }


def _rules_rows(
    config: CheckJob, catalogue: Catalogue | None, users: DistinctIds
) -> dict[str, Any]:
    """What the rules leave, and what the block list names; an empty dict without such rules.

    Raises:
        InputError: a job would refuse the block list, or the rules leave nothing.
    """
    rules = config.rules
    summary_rows: dict[str, Any] = {}
    if (table := rules.blocked_table) is not None:
        blocked = read_blocked(table)
        summary_rows = {
            "block list": describe_table(table, schemas.BLOCKED),
            "rows of the block list": {
                "for everybody": blocked.for_everybody,
                "for one user": blocked.for_one_user,
            },
            "blocked users unknown": compare_ids(blocked.users.ids, users.ids, "users"),
        }
        if catalogue is not None:
            unknown = compare_ids(blocked.items.ids, catalogue.ids, "items")
            summary_rows[f"blocked without {catalogue.noun}"] = unknown
    if catalogue is not None and (table is not None or rules.min_stock is not None):
        items = read_items(items_table(config, config.items, config.items_columns), catalogue.ids)
        allowed = int(recommendable_mask(rules, items, catalogue.ids).sum())
        summary_rows["in stock, not blocked"] = f"{allowed:,} of {len(catalogue.ids):,} items"
    return summary_rows


def _estimate(
    items: int,
    pictures: Catalogue | None,
    users: int,
    held_out: dict[str, int],
    served: Prediction,
) -> dict[str, str]:
    """How long each step of a night takes with default settings on this machine.

    Embedding new texts is not counted.

    Args:
        items: how many can be recommended.
        pictures: those with a picture or an imported feature; None if pictures are not read.
        users: how many get a list.
        held_out: what a training holds out, as counted.
        served: which model serves.
    """
    cores = usable_cores()
    new_pictures = 0
    if pictures is not None:
        new_share = max(1 - pictures.with_feature / len(pictures.ids), 0)
        new_pictures = round(pictures.pictures * new_share) - pictures.rejected
    size = NightSize(
        new_pictures=max(new_pictures, 0),
        items=items,
        users=users,
        test_users=held_out.get("test users", 0),
        is_trained=served.is_trained,
        cores=cores,
    )
    seconds = size.seconds
    steps = {step: format_duration(each) for step, each in seconds.items()}
    steps["extract"] += f" ({size.new_pictures:,} new pictures at {size.pictures_per_second:.0f}/s)"
    if not served.is_trained:
        steps["train"] += " (nothing to train on)"
    elif not served.may_serve:
        steps["train"] += f" ({ModelChoice().name}, though it does not serve)"
    total = format_duration(sum(seconds.values()))
    return {"about": f"{total} on {cores} cores (an estimate)", **steps}
