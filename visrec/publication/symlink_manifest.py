"""The symlink manifest of Hive, Athena and Trino: a text file with the URIs of the files.

Hive's `SymlinkTextInputFormat` reads every file of the table's folder as a list of files, so there
is one file, in a folder of its own, named as Delta Lake names such manifests. It can hold nothing
but URIs.
"""

from visrec.publication.table_content import TableContent
from visrec.storage.store import Store

SYMLINK_MANIFEST = "_symlink_format_manifest/manifest"


class SymlinkManifest:
    """The manifest's content as it was read.

    Args:
        recommendations: where the runs are.
    """

    def __init__(self, recommendations: Store) -> None:
        self._store = recommendations
        self._found = recommendations.read_if_exists(SYMLINK_MANIFEST)

    def shows(self, content: TableContent) -> bool:
        return self._found is not None and self._found[0] == _lines(content)

    def commit(self, content: TableContent) -> None:
        version = self._found[1] if self._found else None
        self._store.compare_and_swap(SYMLINK_MANIFEST, _lines(content), version)


def _lines(content: TableContent) -> bytes:
    """The URIs, rotated by the pointer's sequence number.

    The same run published twice therefore gives different bytes, so a slow process cannot mistake
    the file for the one it read (unless the pointer has moved a multiple of the number of files).
    """
    names = sorted(content.manifest.files)
    first = content.sequence % len(names)
    return "".join(f"{content.uri(name)}\n" for name in names[first:] + names[:first]).encode()
