"""The published run goes to a target, one process at a time.

This takes one process and no Ray: while a server takes one batch, a thread formats the next, and
that keeps a server busy. More processes would wait for each other there.
"""

from visrec.config import digest
from visrec.errors import ConflictError
from visrec.exports.generations import ExportReport
from visrec.exports.run_lists import BeforeShard, open_published_run, published_key
from visrec.exports.targets import Target
from visrec.publication.records import VERSION, now
from visrec.storage.lease import Lease
from visrec.storage.store import Store


def export_published(
    target: Target,
    recommendations: Store,
    leases: Store,
    *,
    only_changed: bool,
    before_shard: BeforeShard = lambda _done, _shards: None,
) -> ExportReport:
    """Exports the published run, and again if another run has been published meanwhile.

    Args:
        target: where to.
        recommendations: where the runs are.
        leases: for the file by which one process at a time exports to the target, and for a record
            of the export.
        only_changed: write only lists that differ from those of the target.
        before_shard: called before each shard is written.

    Raises:
        ConflictError: another process is exporting to the target.
        InputError: nothing is published, or the run is damaged.
        StorageError: the target, or the workspace, refused or failed a request.
    """
    with Lease(leases, f"{digest(target.shown)}.lease") as lease:
        if not lease.held:
            raise ConflictError(
                f"Another process is exporting to {target.shown}: {lease.holder}. Nothing was done "
                "here. That process exports what is published when it ends."
            )

        def check(done: int, shards: int) -> None:
            lease.check()
            before_shard(done, shards)

        while True:
            run = open_published_run(recommendations)
            report = target.export(
                run, recommendations, only_changed=only_changed, before_shard=check
            )
            if published_key(recommendations) == run.key:
                record = {"version": VERSION, "to": target.shown, "run_id": report.run_id}
                leases.write_json(f"{digest(target.shown)}.json", {**record, "at": now()})
                return report


def exported_targets(leases: Store) -> list[str]:
    """The targets, without secrets, that lists were exported to, as far as records tell."""
    names = [entry.name for entry in leases.list() if entry.name.endswith(".json")]
    return sorted(str(leases.read_json(name)["to"]) for name in names)
