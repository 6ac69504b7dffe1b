"""Computes the features of titles and descriptions: embeds new texts, commits the table.

A part of `visrec extract`.
"""

from dataclasses import dataclass

from visrec.cli.output import say
from visrec.cli.progress_line import track_progress
from visrec.cli.reserve import reserve_workers
from visrec.cli.summary import Summary
from visrec.features.extract import ExtractResources
from visrec.features.sentences import TextConfig
from visrec.features.text_table import (
    CHUNK,
    TextExtraction,
    TextPlan,
    commit_texts,
    describe_text_model,
    plan_texts,
    text_chain,
)
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.tasks import call, submit


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """What is embedded, and where the features go.

    Attributes:
        items_table: the items table.
        store: the directory of the texts' features.
        text: the sentence model.
        max_rejected: share of the texts that may be rejected.
        resources: what each worker requests.
        workers: the maximum number of workers.
    """

    items_table: InputTable
    store: Store
    text: TextConfig
    max_rejected: float
    resources: ExtractResources
    workers: int


def extract_texts(job: TextJob, summary: Summary) -> None:
    """Embeds the new and changed texts and commits the table."""
    store = job.store
    store.check_writable()
    with summary.phase("plan texts"):
        identity = call(describe_text_model, job.text)
        plan = submit(plan_texts, job.items_table, store, identity)
        texts, pending, without_text = call(_counts, plan)
    say(f"{texts:,} texts, {pending:,} to embed ({identity})")

    written = []
    computed = 0
    if pending:
        workers = min(job.workers, -(-pending // CHUNK))
        with (
            reserve_workers(workers, job.resources.per_worker) as reserved,
            track_progress("embed", pending, summary) as progress_actor,
        ):
            summary.has_written = True
            extraction = TextExtraction(
                plan=plan,
                store=store,
                text=job.text,
                identity=identity,
                resources=job.resources,
                progress_actor=progress_actor,
            )
            for row in text_chain(extraction, pending, reserved).iter_rows():
                written.append(row["name"])
                computed += row["computed"]
    with summary.phase("commit texts"):
        manifest, rejected = call(commit_texts, plan, written, store, identity, job.max_rejected)
    summary.rows = {
        "texts": texts,
        "texts embedded": computed,
        "items without a text": without_text,
        "texts rejected": rejected,
        "text model": str(identity),
        "text features": manifest.rows,
        "text features at": store.root,
        "text digest": manifest.digest,
    }


def _counts(plan: TextPlan) -> tuple[int, int, int]:
    return plan.rows.num_rows, plan.pending.num_rows, plan.items - plan.rows.num_rows
