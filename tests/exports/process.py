"""An export in a process of its own, which a test kills: the job's work without its imports of Ray.

    python -m tests.exports.process URL RECOMMENDATIONS LEASES [only_changed]

It prints a line when it starts to work.
"""

import sys

from visrec.exports import batches, generations
from visrec.exports.published import export_published
from visrec.exports.targets import parse_target
from visrec.storage.store import Store

if __name__ == "__main__":
    # So that the kills are spread over all steps, although the run is small.
    batches._BATCH_ENTRIES, generations.READERS_GRACE_S = 50, 0.05
    url, recommendations, leases, *flags = sys.argv[1:]
    target = parse_target(url)
    print("start", flush=True)  # noqa: T201
    export_published(target, Store.at(recommendations), Store.at(leases), only_changed=bool(flags))
