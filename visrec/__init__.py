"""Nightly recommendations from pictures and past interactions, on Ray.

The folders form a pipeline, and a module imports only from its own folder and earlier ones:

    errors, config, ids, jagged, ...   leaves that every module may import
    storage, sources                   bytes and tables as they come
    features, interactions             pictures as vectors, interactions as arrays
    models, retrieval, sampling        what scores, what searches, what a step trains on
    training, tuning                   one model, or the best of many
    publication, recommend             runs of lists, published whole or not at all
    evaluation, demo                   how good a model is, and data to try it on
    cli, pipelines                     the jobs

docs/architecture.md traces one picture and one interaction through them, and docs/tree.md names
every file.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visrec.workspace import Workspace

__all__ = ["Workspace", "__version__"]
__version__ = "0.1.0"

# torch's threads sleep until there is work for them. By default they wait in a loop, on cores that
# others may need: on two virtual cores, training took 300 instead of 5,200 examples a second. The
# library of the threads reads this when it is loaded, so it must come before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> object:
    """Imports `Workspace` when it is asked for: Ray and torch take seconds to import."""
    if name == "Workspace":
        from visrec.workspace import Workspace

        return Workspace
    raise AttributeError(f"module 'visrec' has no attribute {name!r}")
