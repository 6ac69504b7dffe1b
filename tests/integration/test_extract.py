"""Extraction: what is computed, what is reused, what is rejected."""

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.integration.workspace import BACKBONE, copy, run_extract
from visrec.cli.launch import visrec_cause
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.features.backbones import BackboneConfig, Precision, load_backbone
from visrec.features.decode import PictureLimits, decode
from visrec.features.planning import CHUNK
from visrec.features.table import load_features, read_manifest
from visrec.storage.store import Store


def features(workspace: Path) -> dict[str, bytes]:
    """Each item's feature, as the bytes that are stored."""
    item_ids, feature_ND = load_features(Store.at(str(workspace / "features")))
    return {
        item_id: row.tobytes()
        for item_id, row in zip(item_ids.to_pylist(), feature_ND, strict=True)
    }


def rejected(workspace: Path) -> dict[str, str]:
    """The reason of each rejected picture, from the files that the manifest names."""
    manifest = read_manifest(Store.at(str(workspace / "features")))
    rows = [
        row
        for name in manifest.rejected
        for row in pq.read_table(workspace / "features" / name).to_pylist()
    ]
    assert all(row["detail"] for row in rows)
    return {row["item_id"]: row["reason"] for row in rows}


def bytes_below(folder: Path) -> dict[str, bytes]:
    """The bytes of every file except hidden ones, which are locks."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p): p.read_bytes() for p in files}


def computed_directly(picture: Path) -> bytes:
    """The feature of one picture by the backbone alone, in float16 as it is stored."""
    backbone = load_backbone(BACKBONE)
    pixels_HWC = decode(picture.read_bytes(), backbone.preprocessing, PictureLimits())
    feature_BD = backbone(torch.from_numpy(np.array(pixels_HWC))[None])
    return bytes(feature_BD[0].numpy().astype(np.float16).tobytes())


def test_stored_feature_equals_the_backbones_output(featured: Path) -> None:
    found = features(featured)
    pictures = sorted((featured / "images").iterdir())
    assert sorted(found) == [picture.stem for picture in pictures]
    for picture in pictures[::20]:
        assert found[picture.stem] == computed_directly(picture)


def test_parts_and_manifest_have_the_documented_schema(featured: Path) -> None:
    store = Store.at(str(featured / "features"))
    manifest = store.read_json("_manifest.json")
    assert manifest["version"] == 1
    assert manifest["identity"]["backbone"] == "random-conv"
    assert manifest["identity"]["dim"] == 64
    assert {"weights_digest", "preprocessing", "precision"} <= manifest["identity"].keys()
    assert sum(manifest["files"].values()) == 300
    assert manifest["rejected"] == {}
    for name, rows in manifest["files"].items():
        part = store.read_table(name)
        assert part.num_rows == rows
        assert part.schema.field("item_id").type == pa.string()
        assert part.schema.field("digest").type == pa.string()
        kind = part.schema.field("feature").type
        assert pa.types.is_fixed_size_list(kind)
        assert (kind.list_size, kind.value_type) == (64, pa.float16())


def test_second_run_computes_nothing_and_changes_nothing(featured: Path) -> None:
    before = bytes_below(featured / "features")
    summary = run_extract(featured)
    assert summary.rows["run through the network"] == 0
    assert bytes_below(featured / "features") == before


@pytest.fixture(scope="module")
def changed(featured: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """One run after changes of every kind: 0 and 1 are deleted, 2 renamed, 3 replaced, ..."""
    workspace = tmp_path_factory.mktemp("changed")
    copy(featured, workspace, "images", "features")
    images = workspace / "images"
    for number in (0, 1):
        (images / f"work-{number:05d}.jpg").unlink()
    (images / "work-00002.jpg").rename(images / "renamed.jpg")
    (images / "work-00003.jpg").write_bytes(blue_picture(3))
    os.utime(images / "work-00004.jpg", (1, 1))
    (images / "work-00005.png").write_bytes(blue_picture(5))
    (images / "new.jpg").write_bytes(blue_picture(99))
    data = (images / "work-00006.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (images / "words.jpg").write_text("This is no picture.")
    add_odd_files(images, data)
    return workspace, run_extract(workspace)


def add_odd_files(images: Path, data: bytes) -> None:
    """Files that are not pictures, and pictures with unusual names."""
    (images / "no-ending").write_bytes(data)
    (images / "fromurl.jpg?width=200").write_bytes(data)
    (images / "LICENSE").write_text("You may look at them.")
    (images / "notes.txt").write_text("This is no picture.")
    (images / "nowhere.jpg").symlink_to("/nonexistent/x.jpg")
    (images / "loop").symlink_to(images)
    os.mkfifo(images / "pipe.jpg")
    with open(os.path.join(os.fsencode(images), b"caf\xe9.jpg"), "wb") as file:
        file.write(data)


def blue_picture(seed: int) -> bytes:
    noise_HWC = np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    noise_HWC[..., 2] = 255
    sink = io.BytesIO()
    Image.fromarray(noise_HWC).save(sink, "PNG")
    return sink.getvalue()


def test_only_new_and_changed_pictures_are_computed(
    featured: Path, changed: tuple[Path, Summary]
) -> None:
    workspace, summary = changed
    assert summary.rows["run through the network"] == 2
    before, now = features(featured), features(workspace)
    for name in ("new", "work-00003"):
        assert now[name] == computed_directly(workspace / "images" / f"{name}.jpg")
    assert now["work-00003"] != before["work-00003"]


def test_deleted_pictures_are_removed_and_all_others_are_kept(
    featured: Path, changed: tuple[Path, Summary]
) -> None:
    workspace, summary = changed
    before, now = features(featured), features(workspace)
    gone = {"work-00000", "work-00001", "work-00002"}
    added = {"renamed", "new", "no-ending", "fromurl"}
    assert now.keys() == before.keys() - gone | added
    assert summary.rows["features"] == len(now) == 301
    kept = now.keys() - added - {"work-00003"}
    assert {name: now[name] for name in kept} == {name: before[name] for name in kept}


def test_renamed_picture_keeps_its_feature(featured: Path, changed: tuple[Path, Summary]) -> None:
    assert features(changed[0])["renamed"] == features(featured)["work-00002"]


def test_bad_pictures_are_rejected_with_their_reasons(changed: tuple[Path, Summary]) -> None:
    workspace, summary = changed
    assert rejected(workspace) == {
        "truncated": "truncated",
        "words": "not_a_picture",
        "work-00005": "duplicate_id",
        "nowhere": "unreadable",
        "pipe": "unreadable",
        "caf\\xe9": "name_not_utf8",
    }
    assert summary.rows["rejected"] == 6
    assert summary.rows["files left out"] == {"without an extension": 1, ".txt": 1}


def test_unchanged_rejected_pictures_are_not_read_again(changed: tuple[Path, Summary]) -> None:
    workspace, _ = changed
    for name in ("nowhere.jpg", "pipe.jpg"):  # unreadable files would be read again
        (workspace / "images" / name).unlink()
    run_extract(workspace)
    before = bytes_below(workspace / "features")
    summary = run_extract(workspace)
    assert (summary.rows["run through the network"], summary.rows["rejected"]) == (0, 4)
    assert "extract" not in summary.phases
    assert bytes_below(workspace / "features") == before


def test_refused_run_changes_nothing_and_the_next_run_reuses_its_work(
    featured: Path, tmp_path: Path
) -> None:
    copy(featured, tmp_path, "images", "features")
    (tmp_path / "images" / "new.jpg").write_bytes(blue_picture(1))
    (tmp_path / "images" / "words.jpg").write_text("This is no picture.")
    before = (tmp_path / "features" / "_manifest.json").read_bytes()
    with pytest.raises(Exception, match="--max_rejected") as refusal:
        run_extract(tmp_path, max_rejected=0.0)
    assert isinstance(visrec_cause(refusal.value), InputError)
    assert (tmp_path / "features" / "_manifest.json").read_bytes() == before
    # A killed run leaves the same files behind, which nothing has committed.
    summary = run_extract(tmp_path)
    assert summary.rows["run through the network"] == 0
    assert features(tmp_path)["new"] == computed_directly(tmp_path / "images" / "new.jpg")
    assert rejected(tmp_path) == {"words": "not_a_picture"}


def test_parts_without_a_manifest_are_reused(featured: Path, tmp_path: Path) -> None:
    copy(featured, tmp_path, "images", "features")
    manifest = (tmp_path / "features" / "_manifest.json").read_bytes()
    (tmp_path / "features" / "_manifest.json").unlink()
    # Copied pictures keep their modification time, so their features are reused.
    summary = run_extract(tmp_path)
    assert summary.rows["run through the network"] == 0
    assert (tmp_path / "features" / "_manifest.json").read_bytes() == manifest


def test_features_of_another_backbone_are_refused(featured: Path) -> None:
    before = bytes_below(featured / "features")
    other = BackboneConfig(name="random-conv", precision="bfloat16")
    with pytest.raises(Exception, match=r"(?s)float32.*bfloat16.*--backbone.name") as refusal:
        run_extract(featured, backbone=other)
    assert isinstance(visrec_cause(refusal.value), InputError)
    assert bytes_below(featured / "features") == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_new_features_are_in_the_precision_of_those_that_are_there(
    featured: Path, tmp_path: Path, precision: Precision
) -> None:
    first, second, *_ = sorted((featured / "images").iterdir())
    (tmp_path / "images").mkdir()
    shutil.copy(first, tmp_path / "images")
    run_extract(tmp_path, backbone=BackboneConfig(name="random-conv", precision=precision))
    shutil.copy(second, tmp_path / "images")
    summary = run_extract(tmp_path, backbone=BackboneConfig(name="random-conv"))
    assert precision in str(summary.rows["backbone"])
    assert (summary.rows["features"], summary.rows["run through the network"]) == (2, 1)


def test_pictures_in_parquet_by_bytes_or_uris_give_the_same_features(
    featured: Path, tmp_path: Path
) -> None:
    pictures = sorted((featured / "images").iterdir())
    ids = [picture.stem for picture in pictures]
    (tmp_path / "images").mkdir()
    images = pa.array([picture.read_bytes() for picture in pictures[:150]])
    pq.write_table(
        pa.table({"item_id": ids[:150], "image": images}),
        tmp_path / "images" / "bytes.parquet",
        row_group_size=30,
    )
    uris = [str(picture) for picture in pictures[150:]]
    pq.write_table(
        pa.table({"item_id": ids[150:], "uri": uris}), tmp_path / "images" / "uris.parquet"
    )
    first = run_extract(tmp_path)
    assert first.rows["run through the network"] == 300
    assert features(tmp_path) == features(featured)
    # A URI does not tell whether its bytes have changed: they are read again and found on disk.
    second = run_extract(tmp_path)
    assert second.rows["run through the network"] == 0
    assert second.rows["digest"] == first.rows["digest"]
    assert features(tmp_path) == features(featured)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_extractions_at_once_on_one_cluster_both_finish(featured: Path, tmp_path: Path) -> None:
    """If both took two of the four CPUs for their workers, no CPU would be left for tasks."""
    pictures = sorted((featured / "images").iterdir())[: 2 * CHUNK]
    workspaces = [tmp_path / "one", tmp_path / "two"]
    for workspace in workspaces:
        (workspace / "images").mkdir(parents=True)
        for picture in pictures:
            (workspace / "images" / picture.name).symlink_to(picture)
    with ThreadPoolExecutor(2) as pool:
        summaries = list(pool.map(run_extract, workspaces, timeout=240))
    assert {summary.rows["run through the network"] for summary in summaries} == {2 * CHUNK}
    every = features(featured)
    expected = {picture.stem: every[picture.stem] for picture in pictures}
    assert features(workspaces[0]) == features(workspaces[1]) == expected
