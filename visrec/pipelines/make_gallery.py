"""The demo's data: paints the sample gallery into the workspace.

visrec make-gallery
"""

from dataclasses import dataclass, field

from visrec.cli.job import JobConfig
from visrec.cli.summary import Summary
from visrec.demo.gallery import GalleryConfig, write_gallery
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class GalleryJob(JobConfig):
    """The sample gallery.

    Attributes:
        gallery: number of pictures, artists and users, and the seed.
    """

    gallery: GalleryConfig = field(default_factory=GalleryConfig)


def main(config: GalleryJob, summary: Summary) -> None:
    store = Store.at(config.workspace)
    store.check_writable()
    summary.has_written = True
    with summary.phase("paint"):
        counts = write_gallery(config.gallery, store.write)
    summary.rows = {name.replace("_", " "): count for name, count in counts.items()}
    summary.rows["workspace"] = store.root
