"""Visual clusters: planted blobs are found, twins are grouped, and the work is done once."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from visrec.errors import InputError
from visrec.features import clusters
from visrec.features.clusters import (
    ClusterConfig,
    find_clusters,
    load_clusters,
    near_identical,
)
from visrec.features.table import MANIFEST, Identity, Manifest, features_table
from visrec.storage.store import Store

Features = npt.NDArray[np.float16]
DIM = 16


def _blobs(count: int = 12, each: int = 25, seed: int = 0) -> tuple[Features, npt.NDArray[np.int_]]:
    """Far blobs in mixed order, and the blob of each item."""
    random = np.random.default_rng(seed)
    blob_N = random.permutation(np.repeat(np.arange(count), each))
    centre_CD = 8 * random.normal(size=(count, DIM))
    feature_ND = centre_CD[blob_N] + random.normal(size=(len(blob_N), DIM)) / 4
    return feature_ND.astype(np.float16), blob_N


def _store(folder: Path, feature_ND: Features, digest: str = "a" * 64) -> Store:
    """A features directory with these features, whose items are in sorted order."""
    store = Store.at(str(folder))
    identity = Identity(
        backbone="planted", weights_digest="w", preprocessing={}, precision="float32", dim=DIM
    )
    names = [f"i{n:05}" for n in range(len(feature_ND))]
    rows = pa.table(
        {"item_id": names, "digest": names, "source": pa.nulls(len(names), pa.string())}
    )
    store.write_table("part-0.parquet", features_table(rows, feature_ND, identity))
    manifest = Manifest(
        identity=identity, files={"part-0.parquet": len(names)}, rejected={}, limits={},
        digest=digest,
    )  # fmt: skip
    store.write_json(MANIFEST, {**manifest.__dict__, "identity": identity.__dict__})
    return store


def _same_partition(one: npt.NDArray[np.int_], other: npt.NDArray[np.int_]) -> bool:
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(set(one.tolist())) == len(set(other.tolist()))


def test_planted_blobs_are_found_exactly() -> None:
    feature_ND, blob_N = _blobs()
    found = find_clusters(feature_ND, ClusterConfig(clusters=12, runs=8))
    assert found.count == 12
    assert _same_partition(found.cluster_N, blob_N)
    assert found.cluster_N.dtype == found.group_N.dtype == np.int32
    assert found.group_N.tolist() == list(range(len(feature_ND)))


def test_silhouette_is_that_of_the_points_that_were_clustered() -> None:
    feature_ND, _ = _blobs()
    found = find_clusters(feature_ND, ClusterConfig(clusters=5))
    wide_ND = feature_ND.astype(np.float64)
    scored = PCA(DIM).fit_transform((wide_ND - wide_ND.mean(0)) / wide_ND.std(0))
    assert found.silhouette == pytest.approx(silhouette_score(scored, found.cluster_N), abs=1e-5)


def test_best_run_is_kept() -> None:
    feature_ND, _ = _blobs()
    alone = [
        find_clusters(feature_ND, ClusterConfig(clusters=5, runs=1, seed=seed)).silhouette
        for seed in range(4)
    ]
    assert len(set(alone)) > 1
    count_same_code = find_clusters(feature_ND, ClusterConfig(clusters=5, runs=4)).silhouette
    assert count_same_code == pytest.approx(max(alone))


def test_looks_are_the_principal_components_at_length_one() -> None:
    feature_ND, _ = _blobs()
    found = find_clusters(feature_ND, ClusterConfig(clusters=3, dimensions=4))
    wide_ND = feature_ND.astype(np.float64)
    point_NP = PCA(4).fit_transform((wide_ND - wide_ND.mean(0)) / wide_ND.std(0))
    unit_NP = point_NP / np.linalg.norm(point_NP, axis=1, keepdims=True)
    # Axes may point either way, so cosines are compared.
    np.testing.assert_allclose(found.look_NP @ found.look_NP.T, unit_NP @ unit_NP.T, atol=1e-4)


@pytest.mark.parametrize(("items", "expected"), [(1, 1), (9, 1), (19, 1), (20, 2), (57, 5)])
def test_few_items_make_few_clusters(items: int, expected: int) -> None:
    random = np.random.default_rng(0)
    found = find_clusters(random.normal(size=(items, DIM)).astype(np.float16), ClusterConfig())
    assert found.count == expected
    assert np.isnan(found.silhouette) == (expected == 1)


def test_catalogues_above_the_limit_are_clustered_in_mini_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature_ND, blob_N = _blobs(count=4)
    monkeypatch.setattr(clusters, "_FULL_KMEANS", 10)
    found = find_clusters(feature_ND, ClusterConfig(clusters=4, runs=8))
    assert _same_partition(found.cluster_N, blob_N)


def test_near_identical_pictures_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_BAND", 7)  # so that groups reach across the blocks
    monkeypatch.setattr(clusters, "_BLOCK", 11)
    random = np.random.default_rng(1)
    unique = 10 * random.normal(size=(60, DIM))
    copy_N = random.integers(0, 60, 200)
    # A factor leaves the cosine as it is; a change of 1 in 100 does not.
    feature_ND = (unique[copy_N] * random.choice([1.0, 2.0], (200, 1))).astype(np.float16)
    feature_ND[:20] *= 1 + random.choice([-0.01, 0.01], (20, DIM)).astype(np.float16)
    cluster_N = np.zeros(200, np.int32)
    cluster_N[100:] = 1
    group_N = clusters._near_identical(feature_ND, cluster_N)
    wide_ND = feature_ND.astype(np.float64)
    wide_ND /= np.linalg.norm(wide_ND, axis=1, keepdims=True)
    near_NN = (wide_ND @ wide_ND.T >= 1 - 1e-7) & (cluster_N[:, None] == cluster_N)
    expected_N = np.arange(200)  # here near-identity is transitive
    for n in range(200):
        expected_N[n] = np.flatnonzero(near_NN[n])[0]
    assert 60 < len(set(expected_N.tolist())) < 160
    assert _same_partition(group_N, expected_N)


def test_pictures_that_chain_are_one_group() -> None:
    angle_N = np.arange(40) * 4e-4  # a step's cosine is 1 - 8e-8, two steps' 1 - 3.2e-7
    feature_ND = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)
    group_N = clusters._near_identical(feature_ND, np.zeros(40, np.int32))  # type: ignore[arg-type]
    assert set(group_N.tolist()) == {0}
    halves_N = np.repeat([0, 1], 20).astype(np.int32)
    group_N = clusters._near_identical(feature_ND, halves_N)  # type: ignore[arg-type]
    assert _same_partition(group_N, halves_N)


def test_clusters_are_made_once_for_features_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature_ND, _ = _blobs()
    store = _store(tmp_path, feature_ND)
    config = ClusterConfig(clusters=12)
    made = load_clusters(store, config)
    calls: list[int] = []

    def counted(feature_ND: Features, config: ClusterConfig) -> clusters.Clusters:
        calls.append(config.clusters)
        return find_clusters(feature_ND, config)

    monkeypatch.setattr(clusters, "find_clusters", counted)
    again = load_clusters(store, config)
    assert not calls
    for name in ("cluster_N", "group_N", "look_NP"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
        assert getattr(again, name).dtype == getattr(made, name).dtype
    assert again.silhouette == made.silhouette
    load_clusters(store, ClusterConfig(clusters=7))  # other settings
    assert calls == [7]
    load_clusters(_store(tmp_path, feature_ND[:200], digest="b" * 64), config)  # other features
    assert calls == [7, 12]
    assert len(list(tmp_path.glob("_clusters-*"))) == 3


def test_nothing_to_compare_is_still_read_back(tmp_path: Path) -> None:
    store = _store(tmp_path, _blobs(count=1, each=5)[0])
    assert load_clusters(store, ClusterConfig()).count == 1
    assert np.isnan(load_clusters(store, ClusterConfig()).silhouette)


@pytest.mark.parametrize("name", ["clusters", "dimensions", "runs"])
def test_settings_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"clusters.{name} 0; expected a whole number"):
        ClusterConfig(**{name: 0})


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("dim", [2, 8, 300])
def test_near_identical_items_are_those_of_cosine_one(dim: int, kind: Any) -> None:
    """Copies at other lengths and with noise above and below the threshold, against all pairs."""
    for seed in range(4):
        random = np.random.default_rng(seed)
        row_N, noise_N = (
            random.integers(0, 60, 300),
            random.choice([0, 1e-5, 1e-4, 3e-4, 1e-3], 300),
        )
        feature_ND = random.normal(size=(60, dim))[row_N] * random.uniform(0.5, 2, (300, 1))
        feature_ND *= 1 + noise_N[:, None] * random.normal(size=(300, dim))
        feature_ND[random.integers(0, 300, 5)] = 0
        feature_ND = feature_ND.astype(kind)
        unit_ND = feature_ND.astype(np.float64)
        unit_ND /= np.maximum(np.linalg.norm(unit_ND, axis=1, keepdims=True), 1e-300)
        expected = connected_components(unit_ND @ unit_ND.T >= 1 - 1e-7, directed=False)[1]
        found = near_identical(feature_ND)
        np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)
        assert 60 < len(set(expected.tolist())) < 300
