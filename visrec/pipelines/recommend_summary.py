"""What the summary of jobs/recommend.py shows of a run."""

from collections import Counter
from collections.abc import Sequence

from visrec.cli.summary import Summary
from visrec.publication.gate import Gate, Outcome
from visrec.publication.gate_context import NOT_EVALUATED
from visrec.publication.manifest import RunManifest
from visrec.recommend.writer import WrittenShard
from visrec.retrieval.similar import Kind

QUERIES: dict[Kind, str] = {"user_to_item": "users", "item_to_item": "items"}


def summary_rows(
    manifest: RunManifest, written: Sequence[WrittenShard], published: str, root: str
) -> dict[str, object]:
    """The rows of the summary.

    Args:
        manifest: of the complete run.
        written: its shards, if they were scored or kept now.
        published: whether the run is published now, or why not.
        root: where the run is.
    """
    forced = [gate.name for gate in manifest.gates if gate.outcome == "forced"]
    queries = QUERIES[manifest.kind]
    return {
        "run": manifest.run_id,
        "model": manifest.model_id,
        **({"choice": manifest.choice} if manifest.choice else {}),
        queries: manifest.queries,
        **({"cold users": manifest.cold_users} if queries == "users" else {}),
        "rows": manifest.rows,
        **manifest.interactions.summary,
        "files": len(manifest.files),
        "shards scored now": sum(not shard.kept for shard in written),
        "lists carried over": sum(shard.carried for shard in written),
        "gates": _gates_row(manifest.gates),
        **({"forced past": "; ".join(forced)} if forced else {}),
        "published": published,
        "run at": root,
    }


def _gates_row(gates: Sequence[Gate]) -> str:
    """How many gates passed, were skipped and were forced; a skipped gate proves nothing."""
    count = Counter(gate.outcome for gate in gates)
    outcomes: tuple[Outcome, ...] = ("passed", "skipped", "forced")
    parts = [f"{count[outcome]} {outcome}" for outcome in outcomes if count[outcome]]
    why = " (the manifest says why)" if count["skipped"] else ""
    return f"{', '.join(parts)}{why}"


def warn_if_not_evaluated(manifest: RunManifest, summary: Summary) -> None:
    """Says where nothing compares the lists with simpler ones; of a night, its choice says it."""
    if not any(gate.note == NOT_EVALUATED for gate in manifest.gates):
        return
    summary.rows["evaluation"] = NOT_EVALUATED
    if manifest.choice is None:
        print(
            "This model has not been evaluated: nothing says whether its lists are better than "
            "VisRank's or than the most popular items. Run `visrec evaluate` "
            "before `visrec recommend`, and the gates compare them.",
            flush=True,
        )
