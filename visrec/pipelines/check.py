"""Shows what a workspace has before anything runs: rows that count, ids that match, a night's time.

visrec check shop
visrec check shop --interactions.columns '{user_id: customer_email, item_id: sku}'
visrec check s3://shop/visrec --interactions.path s3://shop/orders.csv.gz

The command needs no Ray and writes nothing but its summary. Exit code 0 means that a night can run.
Exit code 2 means that a job would refuse the data. The message then lists all faults, including
those that show only after other keys are set: the check continues with the keys that `visrec init`
would propose.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

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
    read_catalogue,
    read_rows,
    read_text_catalogue,
)
from visrec.pipelines.check_findings import Findings
from visrec.pipelines.check_rows import (
    catalogue_rows,
    interaction_rows,
    items_rows,
    remarks,
    rules_rows,
    users_rows,
)
from visrec.pipelines.extract_features import ExtractJob, takes_pictures, texts_table
from visrec.pipelines.input_checks import no_workspace_error
from visrec.pipelines.job_tables import interactions_uri
from visrec.pipelines.night_command import changed_keys, flag, visrec_command
from visrec.pipelines.night_estimate import NightSize, format_duration
from visrec.pipelines.night_prediction import Prediction, predict_served
from visrec.pipelines.proposals import (
    DataJob,
    propose,
    propose_optional,
    with_proposals,
)
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.interactions import read_usable_rows
from visrec.storage import schemas
from visrec.storage.store import Store
from visrec.storage.table_descriptions import describe_table, describe_times


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
        remedy = "Change --workspace, or name your data with --images and --interactions.path"
        raise no_workspace_error(config.workspace, remedy)
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


def examine(config: CheckJob, summary: Summary) -> Findings:
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
    config: CheckJob, summary: Summary, findings: Findings
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
            findings.rows |= catalogue_rows(pictures, extraction.pictures.uri)
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
    findings: Findings,
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
        if columns := cancellation_columns(table):
            findings.remarks.append(
                f"Cancelled and refunded orders ({', '.join(columns)}) count as interactions. "
                "`visrec import retail PATH --workspace NEW` writes a workspace without them."
            )
        time_format = describe_times(table, schemas.INTERACTIONS)
        log = _read_log(config, uri, catalogue, seen)
    findings.rows |= interaction_rows(seen, log, catalogue)
    findings.remarks += remarks(seen, log, time_format, catalogue)
    if log is not None:
        with findings.refusals():
            held_out = held_out_facts(log, config.split)
            findings.rows["held out"] = held_out.counts
            findings.remarks += held_out.notes
    return log


def _examine_tables(
    config: CheckJob,
    summary: Summary,
    findings: Findings,
    catalogue: Catalogue | None,
    seen: ReadRows,
) -> DistinctIds:
    """Examines the other tables; returns all users of the interactions and of the users table."""
    with summary.phase("items"), findings.refusals():
        findings.rows |= items_rows(config, catalogue)
    users = DistinctIds()
    users.add(seen.users.ids)
    with summary.phase("users"), findings.refusals():
        findings.rows |= users_rows(config, seen, users)
    with summary.phase("rules"), findings.refusals():
        findings.rows |= rules_rows(config, catalogue, users)
    return users


def _predict(
    config: CheckJob,
    findings: Findings,
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


def _read_log(
    config: CheckJob, uri: str, catalogue: Catalogue | None, seen: ReadRows
) -> InteractionLog | None:
    """The interactions as a training reads them; without a catalogue they are only counted.

    Raises:
        InputError: a job would refuse them.
    """
    if catalogue is None:
        for _ in seen.watch(read_usable_rows(config.interactions, uri, seen.left_out)):
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
        training_rows=held_out.get("training rows", 0) if served.is_trained else 0,
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
