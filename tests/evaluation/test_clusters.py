"""The clusters of the report: the largest first, each with the pictures nearest to its centre."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from visrec.errors import StorageError
from visrec.evaluation import clusters
from visrec.evaluation.clusters import find_clusters
from visrec.evaluation.report_content import VisualClusters
from visrec.features.clusters import Clusters
from visrec.sources.images import PictureSource
from visrec.storage.store import Store

NOWHERE = Store.at("/nowhere")


def planted(sizes: list[int]) -> Clusters:
    """Clusters of these sizes; within each, row n is n degrees away from the first."""
    cluster_N = np.repeat(np.arange(len(sizes)), sizes)
    angle_N = np.concatenate([np.arange(size) for size in sizes]) * np.pi / 180
    visual_NP = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)
    return Clusters(cluster_N.astype(np.int32), np.arange(len(cluster_N)), visual_NP, 0.5)


def shown(found: Clusters, images: Path, monkeypatch: pytest.MonkeyPatch) -> VisualClusters | None:
    """What the report shows of these clusters."""
    ids = [f"i{n:03}" for n in range(len(found.cluster_N))]
    monkeypatch.setattr(clusters, "load_features", lambda _: (pa.array(ids), None))
    monkeypatch.setattr(clusters, "load_clusters", lambda *_: found)
    Image.new("RGB", (8, 8), "teal").save(images / "i000.png")
    return find_clusters(NOWHERE, PictureSource(str(images)))


def test_largest_clusters_come_first_with_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [3, *range(1, 30), 3]
    found = shown(planted(sizes), tmp_path, monkeypatch)
    assert found is not None
    assert found.count == 31
    assert [row.size for row in found.rows] == sorted(sizes, reverse=True)[:24]
    assert [row.share for row in found.rows] == pytest.approx(
        [row.size / sum(sizes) for row in found.rows]
    )
    assert [len(row.items) for row in found.rows] == [min(row.size, 8) for row in found.rows]


def test_pictures_nearest_to_the_centre_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shown(planted([4, 21]), tmp_path, monkeypatch)
    assert found is not None
    # The mean of the angles from 0 to 20 is 10: row 14 comes first, then one row on each side.
    names = [card.item_id for card in found.rows[0].items]
    assert names[0] == "i014"
    assert {*names[1:3]} == {"i013", "i015"}
    assert {*names[3:5]} == {"i012", "i016"}


def test_one_picture_is_shown_of_each_near_duplicate_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planted([5])
    same = Clusters(found.cluster_N, np.array([0, 1, 1, 1, 2]), found.visual_NP, 0.5)
    rows = shown(same, tmp_path, monkeypatch)
    assert rows is not None
    names = [card.item_id for card in rows.rows[0].items]
    assert names[0] == "i002"
    assert {*names} == {"i000", "i002", "i004"}


def test_nothing_is_clustered_without_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Clusters:
        raise AssertionError("clustered")

    monkeypatch.setattr(clusters, "load_features", never)
    assert find_clusters(NOWHERE, PictureSource(str(tmp_path))) is None


def test_nothing_is_clustered_if_the_pictures_cannot_be_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise StorageError("AccessDenied")

    monkeypatch.setattr(clusters, "list_pictures", refuse)
    assert find_clusters(NOWHERE, PictureSource("s3://shop/images")) is None
