"""Exports in processes that a test kills, forked from this one, whose imports take a second.

    python -m tests.exports.process URL RECOMMENDATIONS LEASES

Each line of standard input, `only_changed` or empty, is one export. It prints the id of the process
of that export when it begins, and its status when it has ended: 9 if it was killed.
"""

import os
import sys

from visrec.exports import batches, generations
from visrec.exports.published import export_published
from visrec.exports.targets import parse_target
from visrec.storage.store import Store


def main(url: str, recommendations: str, leases: str) -> None:
    # So that the kills are spread over all steps, although the runs are small.
    batches._BATCH_ENTRIES, generations.READERS_GRACE_S = 50, 0.05
    target, stores = parse_target(url), (Store.at(recommendations), Store.at(leases))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            print(os.getpid(), flush=True)  # noqa: T201
            export_published(target, *stores, only_changed=line.strip() == "only_changed")
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
