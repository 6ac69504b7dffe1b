"""Visual clusters: planted blobs are found, and clusters are computed once."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from visrec.errors import InputError
from visrec.features import clusters
from visrec.features.clusters import (
    ClusterConfig,
    find_clusters,
    load_clusters,
)
from visrec.features.table import FEATURES_MANIFEST, Identity, Manifest, features_table
from visrec.storage.store import Store

Features = npt.NDArray[np.float16]
DIM = 16


def _blobs(count: int = 12, each: int = 25, seed: int = 0) -> tuple[Features, npt.NDArray[np.int_]]:
    """Well-separated blobs in random order, and the blob of each item."""
    random = np.random.default_rng(seed)
    blob_N = random.permutation(np.repeat(np.arange(count), each))
    centre_CD = 8 * random.normal(size=(count, DIM))
    feature_ND = centre_CD[blob_N] + random.normal(size=(len(blob_N), DIM)) / 4
    return feature_ND.astype(np.float16), blob_N


def _store(folder: Path, feature_ND: Features, digest: str = "a" * 64) -> Store:
    """A features directory with these features; item ids are in the order of the rows."""
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
        identity=identity, files={"part-0.parquet": len(names)}, rejected={}, settings={},
        digest=digest,
    )  # fmt: skip
    store.write_json(FEATURES_MANIFEST, manifest.to_dict())
    return store


def _same_partition(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> bool:
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(set(one.tolist())) == len(set(other.tolist()))


def test_planted_blobs_are_found() -> None:
    feature_ND, blob_N = _blobs()
    found = find_clusters(feature_ND, ClusterConfig(clusters=12, runs=8))
    assert found.count == 12
    assert _same_partition(found.cluster_N, blob_N)
    assert found.cluster_N.dtype == found.group_N.dtype == np.int32
    assert found.group_N.tolist() == list(range(len(feature_ND)))


def test_silhouette_is_that_of_the_clustered_points() -> None:
    feature_ND, _ = _blobs()
    found = find_clusters(feature_ND, ClusterConfig(clusters=5))
    wide_ND = feature_ND.astype(np.float64)
    scored = PCA(DIM).fit_transform((wide_ND - wide_ND.mean(0)) / wide_ND.std(0))
    assert found.silhouette == pytest.approx(silhouette_score(scored, found.cluster_N), abs=1e-5)


def test_run_with_the_highest_silhouette_is_kept() -> None:
    feature_ND, _ = _blobs()
    alone = [
        find_clusters(feature_ND, ClusterConfig(clusters=5, runs=1, seed=seed)).silhouette
        for seed in range(4)
    ]
    assert len(set(alone)) > 1
    best = find_clusters(feature_ND, ClusterConfig(clusters=5, runs=4)).silhouette
    assert best == pytest.approx(max(alone))


def test_visual_vectors_are_principal_components_of_length_one() -> None:
    feature_ND, _ = _blobs()
    found = find_clusters(feature_ND, ClusterConfig(clusters=3, dimensions=4))
    wide_ND = feature_ND.astype(np.float64)
    point_NP = PCA(4).fit_transform((wide_ND - wide_ND.mean(0)) / wide_ND.std(0))
    unit_NP = point_NP / np.linalg.norm(point_NP, axis=1, keepdims=True)
    # Axes may point either way, so cosines are compared.
    np.testing.assert_allclose(found.visual_NP @ found.visual_NP.T, unit_NP @ unit_NP.T, atol=1e-4)


@pytest.mark.parametrize(("items", "expected"), [(1, 1), (9, 1), (19, 1), (20, 2), (57, 5)])
def test_number_of_clusters_is_at_most_a_tenth_of_the_items(items: int, expected: int) -> None:
    random = np.random.default_rng(0)
    found = find_clusters(random.normal(size=(items, DIM)).astype(np.float16), ClusterConfig())
    assert found.count == expected
    assert np.isnan(found.silhouette) == (expected == 1)


def test_catalogue_above_the_limit_is_clustered_in_mini_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature_ND, blob_N = _blobs(count=4)
    monkeypatch.setattr(clusters, "_FULL_KMEANS_ITEMS", 10)
    found = find_clusters(feature_ND, ClusterConfig(clusters=4, runs=8))
    assert _same_partition(found.cluster_N, blob_N)


def test_clusters_are_computed_once_per_features_and_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature_ND, _ = _blobs()
    store = _store(tmp_path, feature_ND)
    config = ClusterConfig(clusters=12)
    first = load_clusters(store, config)
    calls: list[int] = []

    def counted(feature_ND: Features, config: ClusterConfig) -> clusters.Clusters:
        calls.append(config.clusters)
        return find_clusters(feature_ND, config)

    monkeypatch.setattr(clusters, "find_clusters", counted)
    again = load_clusters(store, config)
    assert not calls
    for name in ("cluster_N", "group_N", "visual_NP"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
        assert getattr(again, name).dtype == getattr(first, name).dtype
    assert again.silhouette == first.silhouette
    load_clusters(store, ClusterConfig(clusters=7))  # other settings
    assert calls == [7]
    load_clusters(_store(tmp_path, feature_ND[:200], digest="b" * 64), config)  # other features
    assert calls == [7, 12]
    assert len(list(tmp_path.glob("_clusters-*"))) == 3


def test_single_cluster_is_stored_and_read(tmp_path: Path) -> None:
    store = _store(tmp_path, _blobs(count=1, each=5)[0])
    assert load_clusters(store, ClusterConfig()).count == 1
    assert np.isnan(load_clusters(store, ClusterConfig()).silhouette)


@pytest.mark.parametrize("name", ["clusters", "dimensions", "runs"])
def test_setting_of_zero_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"clusters.{name} 0; expected a whole number"):
        ClusterConfig(**{name: 0})
