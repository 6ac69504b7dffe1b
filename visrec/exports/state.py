"""What a store holds, as one record in the store itself.

Every list has a generation: the number of the export that wrote it. Readers take the newest one of
a user between `since` and `generation` of the record, and so never see what is being written. One
conditional write of the record makes a whole export visible.

    generation 7, since 3      u1: 3        u2: 3 and 7      u3: 5 and 7 (removed)
    export 8 is staged         u1: 3 and 8  u2: 3 and 7      u3: 5 and 7 (removed)
    generation 8, since 3      u1: 3 and 8  ...              one write: u1 has its new list
    cleaned up                 u1: 8        u2: 7            what no reader can see is gone

An export of all lists has itself as `since`: whatever was there before is no longer visible.
"""

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from visrec.exports.run_lists import RunKey
from visrec.publication.records import VERSION, JsonObject, read_record, require_keys
from visrec.storage.store import to_json


@dataclass(frozen=True, kw_only=True)
class Staging:
    """An export that readers do not see yet.

    Attributes:
        run: the run whose lists it writes.
        only_changed: whether it writes only lists that differ from those of the present run.
        shards_done: how many shards are written, in the order of the run's files.
        written: lists that it has written so far.
        removed: lists that it has marked as removed so far.
    """

    run: RunKey
    only_changed: bool
    shards_done: int = 0
    written: int = 0
    removed: int = 0


@dataclass(frozen=True, kw_only=True)
class ExportState:
    """What a store holds. The defaults stand for a store without a record.

    Attributes:
        run: the run whose lists readers see; None before the first export.
        generation: readers see lists up to this generation.
        since: readers see lists from this generation on.
        issued: the highest generation that any export was given.
        staging: an export under way, or one that was interrupted; it writes generation `issued`.
        is_swept: whether everything that readers do not see has been removed.
        write_all: whether the next export must write all lists. An interrupted export was given
            up, and its process may have been suspended, so that something of it may still arrive.
        holder: random id of the process that wrote the record; another process has another one.
        version: the version of this record.
    """

    run: RunKey | None = None
    generation: int = 0
    since: int = 0
    issued: int = 0
    staging: Staging | None = None
    is_swept: bool = True
    write_all: bool = False
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    version: int = VERSION

    def to_json(self) -> bytes:
        return to_json(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: JsonObject) -> "ExportState":
        """The state with these fields; raises KeyError, TypeError or ValueError for others."""
        require_keys(data, {field.name for field in dataclasses.fields(cls)} - {"version"})
        staging = data["staging"]
        parsed = {
            "run": _run_key(data["run"]),
            "staging": staging and Staging(**{**staging, "run": RunKey(**staging["run"])}),
        }
        return cls(**{**data, **parsed})


def parse_state(record: bytes | None, where: str) -> ExportState:
    """The state in a store's record; that of an empty store for None.

    Args:
        record: as it was read.
        where: the store, for the error.

    Raises:
        InputError: it is not a record that this version of visrec wrote.
    """
    if record is None:  # there may be lists all the same, whose record was lost
        return ExportState(is_swept=False)
    remedy = (
        "the record of what it holds is not one that this version of visrec wrote. Export with the "
        "version that wrote it; or remove everything of visrec's from the store and export again."
    )
    return read_record(record, where, ExportState.from_dict, remedy)


def _run_key(fields: Mapping[str, str] | None) -> RunKey | None:
    return None if fields is None else RunKey(**fields)
