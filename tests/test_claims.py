"""Of two writers of one run with other inputs one completes it, and nobody writes over it then."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visrec.claims import CLAIM, claim, is_claimed
from visrec.errors import ConflictError, InputError
from visrec.publish import MANIFEST, Gate, complete
from visrec.storage import Store

PASSED = Gate("users with a list", 1, "at least 1", True)


def described(run: Store, shards: int) -> dict[str, object]:
    files = {}
    for shard in range(shards):
        data = run.read(f"part-{shard}")
        files[f"part-{shard}"] = {"bytes": len(data), "rows": 1, "sha256": data.decode()}
    return {"files": files}


def test_a_run_is_claimed_again_by_the_same_inputs_and_taken_by_others(store: Store) -> None:
    claim(store, "a")
    claim(store, "a")
    assert is_claimed(store, "a")
    claim(store, "b")
    assert is_claimed(store, "b")
    assert not is_claimed(store, "a")
    with pytest.raises(InputError, match="choose another --run_id"):
        claim(store, "a")  # nobody gets it back
    claim(store, "c")
    assert is_claimed(store, "c")


def test_who_has_lost_the_run_cannot_complete_it(store: Store) -> None:
    claim(store, "a")
    store.write("part-0", b"a")
    claim(store, "b")
    with pytest.raises(ConflictError, match="for lists of other inputs"):
        complete(store, described(store, 1), [PASSED], inputs="a")
    assert not store.exists(MANIFEST)


def test_what_is_being_completed_cannot_be_taken(store: Store) -> None:
    """As where the job died between the seal and the manifest: the same inputs may go on."""
    claim(store, "a")
    store.write("part-0", b"a")
    complete(store, described(store, 1), [PASSED], inputs="a")
    store.delete([MANIFEST])
    assert store.read_json(CLAIM) == {"inputs": "a", "lost": [], "sealed": True}
    with pytest.raises(InputError, match="was made from other inputs"):
        claim(store, "b")
    claim(store, "a")
    complete(store, described(store, 1), [PASSED], inputs="a")
    assert store.exists(MANIFEST)


def test_a_file_goes_where_nothing_has_changed_since(store: Store) -> None:
    assert store.exchange("part", b"1", None)
    assert not store.exchange("part", b"2", None)
    version = store.read_versioned("part")[1]
    assert store.exchange("part", b"3", version)
    assert not store.exchange("part", b"4", version)
    assert store.read("part") == b"3"


class Writer:
    """A job's steps one by one, as visrec.scoring.recommend takes them."""

    def __init__(self, run: Store, inputs: str, shards: int) -> None:
        self.run, self.inputs, self.shards = run, inputs, shards
        self.steps = self._steps()
        self.done = False

    def _steps(self):  # type: ignore[no-untyped-def]
        try:
            yield
            if self.run.exists(MANIFEST):
                return
            yield
            claim(self.run, self.inputs)
            for shard in range(self.shards):
                name = f"part-{shard}"
                yield
                there = self.run.exists(name)
                data, version = self.run.read_versioned(name) if there else (b"", None)
                if data == self.inputs.encode():
                    continue
                yield
                if not is_claimed(self.run, self.inputs):
                    return
                yield
                mine = self.inputs.encode()
                if version is None:
                    self.run.create(name, mine)
                else:
                    self.run.replace(name, mine, version)
                yield
                if self.run.read(name) != mine:
                    return
            yield
            found = described(self.run, self.shards)
            if any(f["sha256"] != self.inputs for f in found["files"].values()):  # type: ignore[attr-defined]
                return
            yield
            complete(self.run, found, [PASSED], inputs=self.inputs)
            self.done = True
        except (ConflictError, InputError):
            return


def test_a_writer_that_slept_before_its_last_step_writes_over_nothing(tmp_path: Path) -> None:
    """It has read the shard and seen that the run is its own; then another took it to its end."""
    run = Store(str(tmp_path))
    slow, other = Writer(run, "a", 1), Writer(run, "b", 1)
    run.write("part-0", b"older")
    for _ in range(5):  # the next step is its write
        next(slow.steps)
    for _ in other.steps:
        pass
    assert other.done
    for _ in slow.steps:
        pass
    assert not slow.done
    assert run.read("part-0") == b"b"


@given(st.lists(st.integers(0, 2), max_size=60))
@settings(max_examples=150, deadline=None)
def test_however_writers_take_turns_what_is_complete_is_whole(
    tmp_path_factory: pytest.TempPathFactory, turns: list[int]
) -> None:
    """Three writers, two of them with the same inputs, in any order of their steps."""
    run = Store(str(tmp_path_factory.mktemp("run")))
    writers = [Writer(run, inputs, 2) for inputs in "aba"]
    for turn in [*turns, *[0] * 30, *[1] * 30, *[2] * 30]:
        next(writers[turn].steps, None)
        require_whole(run)
    # All may have given way to one another: whoever comes next comes to the end.
    last = [Writer(run, inputs, 2) for inputs in "abc"]
    for writer in last:
        for _ in writer.steps:
            require_whole(run)
    assert run.exists(MANIFEST)
    assert any(writer.done for writer in [*writers, *last])


def require_whole(run: Store) -> None:
    """A run that has a manifest has its files, all of one writer's inputs."""
    if run.exists(MANIFEST):
        manifest = json.loads(run.read(MANIFEST))
        found = {name: run.read(name).decode() for name in manifest["files"]}
        assert found == {name: facts["sha256"] for name, facts in manifest["files"].items()}
        assert len(set(found.values())) == 1
