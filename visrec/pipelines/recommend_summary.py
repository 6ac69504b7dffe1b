"""What the summary of `visrec recommend` shows of a run."""

from collections import Counter
from collections.abc import Sequence

from visrec.cli.output import say
from visrec.cli.summary import Summary
from visrec.publication.gate import Gate, Outcome
from visrec.publication.gate_context import NOT_EVALUATED
from visrec.publication.held_out_gates import MIN_GAIN, RIVALS
from visrec.publication.manifest import RunManifest
from visrec.recommend.writer import WrittenShard
from visrec.retrieval.similar import Kind

QUERY_NOUNS: dict[Kind, str] = {"user_to_item": "users", "item_to_item": "items"}


def summary_rows(
    manifest: RunManifest, written: Sequence[WrittenShard], published: str, root: str
) -> dict[str, object]:
    """The rows of the summary.

    Args:
        manifest: the complete run's manifest.
        written: its shards, if they were scored or kept now.
        published: whether the run is published now, or why not.
        root: where the run is.
    """
    forced = [gate.name for gate in manifest.gates if gate.outcome == "forced"]
    queries = QUERY_NOUNS[manifest.kind]
    kernels = {shard.kernel for shard in written if not shard.kept} - {""}
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
        **({"search kernel": ", ".join(sorted(kernels))} if kernels else {}),
        "lists carried over": sum(shard.carried for shard in written),
        "gates": _gates_row(manifest.gates),
        **({"forced gates": "; ".join(forced)} if forced else {}),
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


def warn_if_not_compared(manifest: RunManifest, summary: Summary) -> None:
    """Warns if the lists were not compared with a baseline. A night's `choice` already says so."""
    held_out = [gate for gate in manifest.gates if gate.key == MIN_GAIN]
    why = next((gate.note for gate in held_out if gate.outcome == "skipped"), None)
    if why is None or (manifest.choice is not None and why != NOT_EVALUATED):
        return
    summary.rows["evaluation"] = why
    if manifest.choice is not None:
        return
    text = (
        f"Nothing says whether the lists of {manifest.model_id} are better than VisRank's or than "
        f"the most popular items: {why}."
    )
    if why == NOT_EVALUATED:
        text += " Run `visrec evaluate` before `visrec recommend`, and the gates compare them."
    elif manifest.model_name not in RIVALS.values():
        text += " A night would let VisRank serve in its place."
    say(text, "warning")
