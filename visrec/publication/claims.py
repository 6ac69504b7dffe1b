"""Who may write a run: one set of inputs at a time, until the run is sealed or removed.

The claim is one small file, and every change is a compare-and-swap. docs/architecture.md draws the
states. `claim_run` opens a claim and may take over one with different inputs. `seal` seals it.
`retention.py` sets a claim to removed, and deletes it after all other files. `forget.py` sets the
claim of an unfinished run to forgetting, which makes the run's job stop, and then opens it again.

Each claim has a random token, so that a claim that was deleted and made again is a different one.
"""

import dataclasses
import uuid
from dataclasses import dataclass
from typing import Literal, get_args

from visrec.errors import ConflictError, InputError
from visrec.publication.records import VERSION, JsonObject, read_record, require_keys
from visrec.storage.store import Store, to_json

CLAIM = "_claim.json"
# Files with lists and files with fingerprints have names that start with these. The other files of
# a run are the claim and, in `manifest.py`, the manifest (also under the name that it has while it
# is replaced), `_held_back.json` and `_rewriting.json`.
PARTS, FINGERPRINTS = "part-", "_fingerprints/"

State = Literal["open", "sealed", "removed", "forgetting"]


def _token() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who may write a run.

    Attributes:
        inputs_digest: digest of the inputs whose lists may be written; empty in state `removed`.
        lost: digests of inputs that claimed the run earlier and cannot get it back.
        state: `open`, `sealed` (the manifest may come at any moment), `removed` (retention is
            removing the run) or `forgetting` (`forget.py` is removing files of it, and then opens
            the claim again for the same inputs).
        token: random, so that no two claims have the same bytes.
        version: the version of this record.
    """

    inputs_digest: str
    lost: tuple[str, ...] = ()
    state: State = "open"
    token: str = dataclasses.field(default_factory=_token)
    version: int = VERSION

    @property
    def may_write(self) -> bool:
        """Whether its inputs may write files of the run."""
        return self.state in ("open", "sealed")

    def renewed(self, state: State) -> "Claim":
        """The same claim in this state, with another token."""
        return dataclasses.replace(self, state=state, token=_token())

    def to_dict(self) -> JsonObject:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: JsonObject) -> "Claim":
        """The claim with these fields; raises KeyError, TypeError or ValueError for others."""
        require_keys(data, ("inputs_digest", "lost", "state", "token"))
        if not isinstance(data["inputs_digest"], str) or not isinstance(data["lost"], list):
            raise TypeError("found a field of the wrong type")
        if data["state"] not in get_args(State):
            raise ValueError(f"found the state {data['state']!r}")
        return cls(**{**data, "lost": tuple(data["lost"])})


def read_claim(run: Store) -> tuple[Claim | None, str | None]:
    """The claim of a run and the version of its file; None and None where there is no claim.

    Raises:
        InputError: the file is not a claim.
    """
    found = run.read_if_exists(CLAIM)
    if found is None:
        return None, None
    remedy = (
        "expected the claim that visrec wrote. If no job is writing "
        f"{run.root}, remove the file and run the job again."
    )
    return read_record(found[0], run.uri(CLAIM), Claim.from_dict, remedy), found[1]


def claim_run(run: Store, inputs_digest: str) -> None:
    """Claims a run for these inputs. An unsealed claim with different inputs is taken over.

    A writer writes a file only while it holds the claim (`holds_claim`), and the names of its files
    contain the digest of its inputs. If it loses the claim to other inputs while it writes a file,
    it removes that file. A writer that lost the claim cannot regain it while the claim file exists,
    so its other files can be removed at any time.

    Args:
        run: the directory of the run.
        inputs_digest: digest of all inputs.

    Raises:
        InputError: the run is sealed for other inputs, or these inputs have lost it to others.
        ConflictError: retention is removing the run, or `visrec forget` is removing files of it.
    """
    # The first try creates the claim. If there is one, it is read, and the next try replaces
    # exactly the claim that was read.
    lost: tuple[str, ...] = ()
    version = None
    while not _swap(run, Claim(inputs_digest=inputs_digest, lost=lost), version):
        claim, version = read_claim(run)
        if claim is None:
            lost = ()
            continue
        if claim.state == "removed":
            raise ConflictError(
                f"Retention is removing {run.root}. Run the job again when the removal is done; if "
                "it was interrupted, the next nights finish it."
            )
        if claim.state == "forgetting":
            raise ConflictError(
                f"`visrec forget` is removing users from {run.root}. Run the job again when "
                "`visrec forget` has ended; if it was interrupted, start `visrec forget` again "
                "first."
            )
        if claim.inputs_digest == inputs_digest:
            return
        if claim.state == "sealed" or inputs_digest in claim.lost:
            raise InputError(
                f"The run at {run.root}, complete or not, belongs to other inputs or settings. "
                "Choose another --run_id; or remove the run, if no job is writing it "
                "and it has no manifest."
            )
        lost = (*claim.lost, claim.inputs_digest)


def holds_claim(run: Store, inputs_digest: str) -> bool:
    """Whether files made from these inputs may be written to the run: the claim is theirs."""
    claim, _ = read_claim(run)
    return claim is not None and claim.inputs_digest == inputs_digest and claim.may_write


def is_claimed_by_others(run: Store, inputs_digest: str) -> bool:
    """Whether others have the claim: other inputs, retention or `forget.py`.

    False where there is no claim. Then these inputs may claim the run again, and keep intact files.
    """
    claim, _ = read_claim(run)
    return claim is not None and (claim.inputs_digest != inputs_digest or not claim.may_write)


def seal(run: Store, inputs_digest: str) -> None:
    """Seals a run: from now on it cannot be claimed for other inputs.

    Raises:
        ConflictError: other inputs have taken the run, retention is removing it, or `forget.py` is
            removing files of it.
    """
    while True:
        claim, version = read_claim(run)
        if claim is None or claim.inputs_digest != inputs_digest or not claim.may_write:
            raise lost_claim_error(run)
        if claim.state == "sealed":
            return
        if _swap(run, dataclasses.replace(claim, state="sealed"), version):
            return


def lost_claim_error(run: Store) -> ConflictError:
    """The error of a writer that no longer holds the claim on its run."""
    return ConflictError(
        f"Another writer has taken {run.root} for lists of other inputs, retention has removed it, "
        "or `visrec forget` is removing files of it. Choose another --run_id, or run the job again."
    )


def removal_claim() -> bytes:
    """The content of the claim file while retention removes the run."""
    return to_json(Claim(inputs_digest="", state="removed").to_dict())


def _swap(run: Store, claim: Claim, version: str | None) -> bool:
    return run.compare_and_swap(CLAIM, to_json(claim.to_dict()), version)
