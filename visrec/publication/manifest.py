"""The manifest of a run: what it wrote and from what. A run with a manifest is complete."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from visrec.errors import InputError
from visrec.interactions.log import ReadReport
from visrec.publication.claims import FINGERPRINTS, PARTS
from visrec.publication.gate import Gate
from visrec.publication.list_tables import Layout
from visrec.publication.records import VERSION, JsonObject, read_record, require_keys
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store, to_json

RUN_MANIFEST = "_manifest.json"
HELD_BACK = "_held_back.json"  # the gates of a run that was held back, until it is complete
# Exists while `forget.py` rewrites a complete run: no file is removed as stray meanwhile.
REWRITING = "_rewriting.json"


@dataclass(frozen=True)
class ShardFile:
    """A file with lists.

    Attributes:
        rows: the number of rows of its table.
        bytes: its size.
        sha256: SHA-256 of its bytes.
    """

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ForcedPublication:
    """Why a run was published although gates failed.

    Attributes:
        reason: given with `--force_publish`.
        gates: names of the gates that it overrode.
    """

    reason: str
    gates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What a complete run is.

    Attributes:
        run_id: the run's id.
        model_id: the model's id.
        model_name: its kind, such as curatornet.
        choice: a sentence on which model serves and why, if a night chose it; None if no night
            did.
        inputs: digests of all that the lists were made from, and the settings, by name.
        inputs_digest: digest of `inputs`.
        layout: the layout of the tables.
        kind: whether the lists are of users or of items.
        k: entries of a list.
        cutoff_timestamp: the run knows interactions before this second of Unix time; None for all.
        queries: number of users, or items, with a list.
        cold_users: how many of them have the fallback list.
        rows: the number of rows of all files together.
        available: number of items that may be listed.
        interactions: how many rows were read, and how many were left out.
        without_feature: shares of the interactions, and of the available items of the items table,
            whose item has no feature.
        files: the files with lists, by name.
        fingerprints: SHA-256 of the files with fingerprints, by name.
        seconds: the seconds that each phase took.
        gates: all checks before publication. This field and the following ones are set when the run
            is completed.
        forced: why the run was published although gates failed; None where none did.
        pointer_sequence: `sequence` of the pointer when the run was completed.
        pointer_cutoff_timestamp: `cutoff_timestamp` of the pointer at that moment.
        completed_at: when.
        version: the version of this record.
    """

    run_id: str
    model_id: str
    model_name: str
    choice: str | None
    inputs: Mapping[str, object]
    inputs_digest: str
    layout: Layout
    kind: Kind
    k: int
    cutoff_timestamp: float | None
    queries: int
    cold_users: int
    rows: int
    available: int
    interactions: ReadReport
    without_feature: Mapping[str, float]
    files: Mapping[str, ShardFile]
    fingerprints: Mapping[str, str]
    seconds: Mapping[str, float]
    gates: tuple[Gate, ...] = ()
    forced: ForcedPublication | None = None
    pointer_sequence: int = 0
    pointer_cutoff_timestamp: float | None = None
    completed_at: str = ""
    version: int = VERSION

    @property
    def sha256_by_file(self) -> dict[str, str]:
        """SHA-256 of the files with lists, by name."""
        return {name: file.sha256 for name, file in self.files.items()}

    def to_dict(self) -> JsonObject:
        """All fields, and `digest`, the SHA-256 of them all."""
        data = dataclasses.asdict(self)
        return {**data, "digest": _digest(data)}

    @classmethod
    def from_dict(cls, data: JsonObject) -> "RunManifest":
        """The manifest with these fields; raises KeyError, TypeError or ValueError for others."""
        data = dict(data)
        digest = data.pop("digest")
        require_keys(data, {field.name for field in dataclasses.fields(cls)} - {"version"})
        if digest != _digest(data):
            raise ValueError("the digest is not that of the other fields")
        forced = data["forced"]
        parsed = {
            "interactions": ReadReport(**data["interactions"]),
            "files": {name: ShardFile(**file) for name, file in data["files"].items()},
            "gates": tuple(Gate.from_dict(gate) for gate in data["gates"]),
            "forced": forced
            and ForcedPublication(reason=forced["reason"], gates=tuple(forced["gates"])),
        }
        return cls(**{**data, **parsed})


def parse_manifest(data: bytes, uri: str) -> RunManifest:
    """The manifest in a file.

    Raises:
        InputError: it is not the manifest that was written.
    """
    remedy = (
        "it is not the manifest that visrec wrote. Remove the file and run the job again with the "
        "same --run_id: shards that are intact are kept."
    )
    return read_record(data, uri, RunManifest.from_dict, remedy)


def read_run_manifest(run: Store) -> RunManifest | None:
    """The manifest of a run, None where there is none.

    Raises:
        InputError: the file is not the manifest that was written.
    """
    found = read_manifest_file(run)
    return None if found is None else found[1]


def read_manifest_file(run: Store) -> tuple[bytes, RunManifest] | None:
    """The bytes of a run's manifest, and the manifest; None where there is none.

    Raises:
        InputError: the file is not the manifest that was written.
    """
    found = run.read_if_exists(RUN_MANIFEST)
    return None if found is None else (found[0], parse_manifest(found[0], run.uri(RUN_MANIFEST)))


def rewritten_name(sha256: str) -> str:
    """The name of a manifest while it takes the place of the run's manifest, by its SHA-256."""
    return f"_manifest-{sha256[:12]}.json"


def read_manifest_bytes(run: Store, sha256: str) -> bytes | None:
    """The manifest of a run that has this SHA-256; None where there is none."""
    for name in (RUN_MANIFEST, rewritten_name(sha256)):
        found = run.read_if_exists(name)
        if found is not None and hashlib.sha256(found[0]).hexdigest() == sha256:
            return found[0]
    return None


def require_intact_files(run: Store, manifest: RunManifest) -> None:
    """Reads all files with lists that a manifest of a run names.

    Raises:
        InputError: a file is missing, or has another SHA-256 than the manifest says.
    """
    for name, sha256 in sorted(manifest.sha256_by_file.items()):
        found = run.read_if_exists(name)
        if found is None or hashlib.sha256(found[0]).hexdigest() != sha256:
            raise InputError(
                f"{run.uri(name)} is not the file that the manifest names; expected a run whose "
                f"files are intact. Choose another --run_id; or remove {run.uri(RUN_MANIFEST)} and "
                "run the job that made the run again: shards that are intact are kept."
            )


def remove_stray_files(run: Store) -> tuple[RunManifest | None, dict[str, int]]:
    """Removes the files of a complete run that its manifest does not name.

    They were written by a writer that was late, or that was killed before it could remove them.
    Files whose names visrec does not use stay. All files stay while users are removed from the run,
    and where there is no manifest.

    Returns:
        The manifest, and the sizes of all files before, by name.

    Raises:
        InputError: the manifest is not the one that was written.
    """
    while True:
        found = run.read_if_exists(RUN_MANIFEST)
        if found is None:
            return None, {}
        sizes = {entry.name: entry.size for entry in run.list()}
        # Checked after the listing: `forget.py` writes REWRITING before any new file.
        is_being_rewritten = run.exists(REWRITING)
        if run.read_if_exists(RUN_MANIFEST) == found:  # else the files may be those of another one
            break
    manifest = parse_manifest(found[0], run.uri(RUN_MANIFEST))
    named = {*manifest.files, *manifest.fingerprints}
    ours = (PARTS, FINGERPRINTS, HELD_BACK)
    strays = [name for name in sizes if name.startswith(ours) and name not in named]
    run.delete([] if is_being_rewritten else strays)
    return manifest, sizes


def _digest(data: JsonObject) -> str:
    return hashlib.sha256(to_json(data)).hexdigest()
