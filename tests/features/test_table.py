"""Features on disk: read in the order of the ids, and only those of one network."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from visrec.errors import InputError
from visrec.features.table import (
    FEATURES_MANIFEST,
    Identity,
    Manifest,
    features_table,
    load_features,
    part_name,
    read_features_at,
    read_index,
    read_manifest,
    rejected_table,
    require_same_identity,
    table_digest,
)
from visrec.storage.schemas import features_schema
from visrec.storage.store import Store

ROWS, DIM = 23, 4
IDENTITY = Identity(
    backbone="paint",
    weights_digest="0123456789abcdef",
    preprocessing={"resize": 256, "mean": [0.5, 0.5, 0.5]},
    precision="float32",
    dim=DIM,
)
OTHER = dataclasses.replace(IDENTITY, weights_digest="fedcba9876543210")
RANDOM = np.random.default_rng(0)
IDS = [f"item {n}" for n in RANDOM.permutation(ROWS)]  # "item 10" sorts before "item 2"
FEATURES = RANDOM.normal(size=(ROWS, DIM)).astype(np.float16)
Halves = npt.NDArray[np.float16]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path))


def _part(start: int, stop: int, identity: Identity = IDENTITY) -> pa.Table:
    ids = IDS[start:stop]
    rows = pa.table(
        {"item_id": ids, "digest": [f"d{name}" for name in ids], "source": [None] * len(ids)},
        schema=pa.schema({name: pa.string() for name in ("item_id", "digest", "source")}),
    )
    return features_table(rows, FEATURES[start:stop], identity)


def _write(store: Store, cuts: list[int], identity: Identity = IDENTITY) -> list[str]:
    """Writes parts split at `cuts`, and a manifest of them; returns the names of the parts."""
    files = {}
    for start, stop in pairwise(cuts):
        part = _part(start, stop, identity)
        store.write_table(part_name(part), part)
        files[part_name(part)] = part.num_rows
    index = read_index(store, list(files), identity, ["item_id", "digest"])
    manifest = Manifest(
        identity=identity,
        files=files,
        rejected={},
        settings={},
        digest=table_digest(index, identity),
    )
    store.write_json(FEATURES_MANIFEST, manifest.to_dict())
    return list(files)


def test_part_has_the_declared_columns() -> None:
    part = _part(0, 5)
    part.validate(full=True)
    assert part.schema.equals(features_schema(DIM))


@pytest.mark.parametrize("cuts", [[0, ROWS], [0, 9, 10, ROWS], list(range(ROWS + 1))])
def test_features_are_loaded_in_the_order_of_the_ids(store: Store, cuts: list[int]) -> None:
    _write(store, cuts)
    item_ids, feature_ND = load_features(store)
    order = sorted(range(ROWS), key=IDS.__getitem__)
    assert item_ids.to_pylist() == [IDS[n] for n in order]
    np.testing.assert_array_equal(feature_ND, FEATURES[order])
    assert feature_ND.dtype == np.float16


def test_part_outside_the_manifest_is_not_loaded(store: Store) -> None:
    _write(store, [0, 6, 12])
    left_behind = _part(12, ROWS)
    store.write_table(part_name(left_behind), left_behind)
    assert sorted(load_features(store)[0].to_pylist()) == sorted(IDS[:12])


def test_manifest_survives_a_round_trip(store: Store) -> None:
    names = _write(store, [0, 6, ROWS])
    manifest = read_manifest(store)
    assert manifest.identity == IDENTITY
    assert manifest.files == {names[0]: 6, names[1]: ROWS - 6}
    assert manifest.rows == ROWS


def test_manifest_of_another_version_is_refused(store: Store) -> None:
    _write(store, [0, ROWS])
    store.write_json(FEATURES_MANIFEST, {**store.read_json(FEATURES_MANIFEST), "version": 99})
    with pytest.raises(InputError, match=r"version 99 of .*_manifest\.json; expected version 1"):
        read_manifest(store)


def test_index_has_part_and_row_of_each_item(store: Store) -> None:
    names = _write(store, [0, 6, 7, ROWS])
    index = read_index(store, names, IDENTITY, ["item_id", "digest"])
    found: list[tuple[Any, ...]] = [tuple(row.values()) for row in index.to_pylist()]
    expected = [
        (IDS[n], f"d{IDS[n]}", part, n - start)
        for part, (start, stop) in enumerate([(0, 6), (6, 7), (7, ROWS)])
        for n in range(start, stop)
    ]
    assert found == expected


def test_features_are_read_at_rows_of_several_parts(store: Store) -> None:
    names = _write(store, [0, 6, 7, ROWS])
    index = read_index(store, names, IDENTITY, ["item_id"])
    chosen = [22, 0, 6, 5, 7, 22]
    rows = read_features_at(store, names, index.take(pa.array(chosen)), DIM)
    np.testing.assert_array_equal(rows, FEATURES[chosen])


@pytest.mark.parametrize(
    "other",
    [
        OTHER,
        dataclasses.replace(IDENTITY, backbone="sketch"),
        dataclasses.replace(IDENTITY, precision="bfloat16"),
        dataclasses.replace(IDENTITY, preprocessing={"resize": 224, "mean": [0.5, 0.5, 0.5]}),
    ],
    ids=str,
)
def test_index_skips_parts_of_another_network(store: Store, other: Identity) -> None:
    same, foreign = _part(0, 6), _part(6, 12, other)
    unlabelled = _part(12, ROWS).replace_schema_metadata(None)
    for name, part in (("same", same), ("foreign", foreign), ("unlabelled", unlabelled)):
        store.write_table(name, part)
    index = read_index(store, ["unlabelled", "foreign", "same"], IDENTITY, ["item_id"])
    assert index["item_id"].to_pylist() == IDS[:6]
    assert set(index["part"].to_pylist()) == {2}
    with pytest.raises(InputError, match="never mixed"):
        require_same_identity(other, IDENTITY, store, "backbone.name")


def test_index_without_parts_is_empty_with_all_columns(store: Store) -> None:
    store.write_table("foreign", _part(0, 5, OTHER))
    for names in ([], ["foreign"]):
        index = read_index(store, names, IDENTITY, ["item_id", "digest"])
        assert index.num_rows == 0
        assert index.column_names == ["item_id", "digest", "part", "row"]


def test_index_of_rejections_skips_those_of_another_network(store: Store) -> None:
    rows = pa.table({"item_id": ["a"], "reason": ["broken"], "detail": ["cut"], "source": ["s"]})
    store.write_table("rejected", rejected_table(rows, IDENTITY))
    columns = ["item_id", "reason"]
    assert read_index(store, ["rejected"], IDENTITY, columns)["reason"].to_pylist() == ["broken"]
    assert read_index(store, ["rejected"], OTHER, columns).num_rows == 0


def test_identity_is_equal_after_a_round_trip(store: Store) -> None:
    _write(store, [0, ROWS])
    require_same_identity(read_manifest(store).identity, IDENTITY, store, "backbone.name")


def test_digest_does_not_depend_on_the_split_into_parts(tmp_path: Path) -> None:
    digests = set()
    for number, cuts in enumerate([[0, ROWS], [0, 9, 10, ROWS], list(range(ROWS + 1))]):
        store = Store.at(str(tmp_path / str(number)))
        _write(store, cuts)
        digests.add(read_manifest(store).digest)
    assert len(digests) == 1


def test_digest_changes_with_ids_pictures_and_network() -> None:
    def digest(ids: list[str], pictures: list[str], identity: Identity = IDENTITY) -> str:
        return table_digest(pa.table({"item_id": ids, "digest": pictures}), identity)

    assert digest(["a", "b"], ["1", "2"]) == digest(["b", "a"], ["2", "1"])
    different = [
        digest(["a", "b"], ["1", "2"]),
        digest(["a", "b"], ["2", "1"]),
        digest(["a", "c"], ["1", "2"]),
        digest(["a"], ["1"]),
        digest(["a", "b"], ["1", "2"], OTHER),
        digest(["a", "b1"], ["", "2"]),
    ]
    assert len(set(different)) == len(different)


def test_name_of_a_part_depends_on_its_content() -> None:
    assert part_name(_part(0, 5)) == part_name(_part(0, 5))
    assert part_name(_part(0, 5)) != part_name(_part(0, 6))


def test_missing_or_empty_features_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match="Found no features"):
        load_features(store)
    _write(store, [0])
    with pytest.raises(InputError, match="no rows"):
        load_features(store)
