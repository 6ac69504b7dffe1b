"""An extraction from its plan to its commit, with rejected pictures, without Ray."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from visrec.errors import ConflictError, InputError
from visrec.features.backbones import BackboneConfig, load_backbone
from visrec.features.commit import commit_extraction
from visrec.features.decode import PictureLimits, decode
from visrec.features.extract import (
    ExtractionContext,
    ExtractResources,
    describe,
    extract_in_process,
)
from visrec.features.planning import (
    CHUNK,
    ExtractionPlan,
    extraction_settings,
    plan_extraction,
)
from visrec.features.table import Identity, features_table, load_features, rejected_table
from visrec.progress import ProgressActor
from visrec.sources.images import PictureSource
from visrec.storage.store import Store
from visrec.tasks import LocalActor

IDENTITY = Identity(
    backbone="b", weights_digest="0" * 8, preprocessing={}, precision="float32", dim=2
)
LIMITS = PictureLimits()
GOOD, BAD = "part-good.parquet", "_rejected/part-bad.parquet"
OTHER = "part-other.parquet"


def write_pending(store: Store, name: str, plan: ExtractionPlan) -> None:
    """A part with a feature for every picture that a plan has pending."""
    ids, sources = plan.pending["item_id"], plan.pending["source"]
    rows = pa.table({"item_id": ids, "digest": ids, "source": sources})
    store.write_table(name, features_table(rows, np.ones((len(rows), 2), np.float16), IDENTITY))


def test_rejected_picture_without_a_source_is_recorded_once_per_run(tmp_path: Path) -> None:
    images, store = str(tmp_path / "images.parquet"), Store.at(str(tmp_path / "features"))
    pq.write_table(pa.table({"item_id": ["a", "b"], "uri": ["/a.jpg", "/b.jpg"]}), images)
    source, settings = PictureSource(images), extraction_settings(PictureSource(images), LIMITS)
    none = pa.nulls(1, pa.string())
    good = pa.table({"item_id": ["a"], "digest": ["d"], "source": none})
    bad = pa.table(
        {"item_id": ["b"], "reason": ["corrupt"], "detail": ["x"], "source": none, "view": none}
    )
    for _ in range(2):
        plan = plan_extraction(source, store, IDENTITY, LIMITS)
        assert plan.pending["item_id"].to_pylist() == ["a", "b"]
        store.write_table(GOOD, features_table(good, np.ones((1, 2), np.float16), IDENTITY))
        store.write_table(BAD, rejected_table(bad, IDENTITY))
        manifest, reasons = commit_extraction(plan, [GOOD, BAD], store, IDENTITY, settings, 1.0)
        assert (manifest.rows, reasons) == (1, {"corrupt": 1})
        assert sum(manifest.rejected.values()) == 1


def test_picture_that_was_unreadable_is_read_again(tmp_path: Path) -> None:
    """New permissions, or a store that answers again, leave the file as it was."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(name.encode())
    store = Store.at(str(tmp_path / "features"))
    source = PictureSource(str(tmp_path / "images"))
    settings = extraction_settings(source, LIMITS)
    plan = plan_extraction(source, store, IDENTITY, LIMITS)
    sources = dict(
        zip(plan.pending["item_id"].to_pylist(), plan.pending["source"].to_pylist(), strict=True)
    )
    reasons = {"a": "unreadable", "b": "corrupt", "c": "out_of_memory"}
    rows = {"item_id": list(reasons), "reason": list(reasons.values()), "detail": ["x"] * 3}
    no_view = pa.nulls(3, pa.string())
    bad = pa.table({**rows, "view": no_view, "source": [sources[name] for name in reasons]})
    store.write_table(BAD, rejected_table(bad, IDENTITY))
    commit_extraction(plan, [BAD], store, IDENTITY, settings, 1.0)
    again = plan_extraction(source, store, IDENTITY, LIMITS)
    assert again.pending["item_id"].to_pylist() == ["a", "c"]
    assert again.rejected["item_id"].to_pylist() == ["b"]


def test_file_whose_name_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    images, store = tmp_path / "images", Store.at(str(tmp_path / "features"))
    images.mkdir()
    (images / "a.jpg").write_bytes(b"a")
    (images / "notes.txt").write_bytes(b"a")
    with open(os.path.join(os.fsencode(images), b"caf\xe9.jpg"), "wb") as file:
        file.write(b"x")
    good = pa.table({"item_id": ["a"], "digest": ["d"], "source": pa.nulls(1, pa.string())})
    source = PictureSource(str(images))
    settings = extraction_settings(source, LIMITS)
    for _ in range(2):
        plan = plan_extraction(source, store, IDENTITY, LIMITS)
        good = good.set_column(2, "source", plan.listing["source"])
        assert (plan.picture_count, plan.not_pictures) == (2, {".txt": 1})
        store.write_table(GOOD, features_table(good, np.ones((1, 2), np.float16), IDENTITY))
        manifest, reasons = commit_extraction(plan, [GOOD], store, IDENTITY, settings, 0.5)
        assert (manifest.rows, reasons) == (1, {"name_not_utf8": 1})
        [name] = manifest.rejected
        assert store.read_table(name)["item_id"].to_pylist() == ["caf\\xe9"]
        with pytest.raises(InputError, match="1 of 2 pictures were rejected"):
            commit_extraction(plan, [GOOD], store, IDENTITY, settings, 0.4)


def test_items_are_pending_in_the_order_of_their_rows_in_parquet(tmp_path: Path) -> None:
    """So tasks read a row group once, whatever the order of the ids."""
    images, store = str(tmp_path / "images.parquet"), Store.at(str(tmp_path / "features"))
    rows = pa.table({"item_id": ["c", "a", "b", "a"], "image": [b"1", b"2", b"3", b"4"]})
    pq.write_table(rows, images, row_group_size=3)
    plan = plan_extraction(PictureSource(images), store, IDENTITY, LIMITS)
    assert plan.pending["item_id"].to_pylist() == ["c", "a", "a", "b"]
    assert plan.pending["row"].to_pylist() == [0, 1, 0, 2]


def test_part_that_another_commit_has_removed_ends_an_extraction(tmp_path: Path) -> None:
    """The other one has listed before the picture was there, and commits before this one."""
    images, store = tmp_path / "images", Store.at(str(tmp_path / "features"))
    images.mkdir()
    (images / "a.jpg").write_bytes(b"a")
    source = PictureSource(str(images))
    settings = extraction_settings(source, LIMITS)
    other = plan_extraction(source, store, IDENTITY, LIMITS)
    (images / "b.jpg").write_bytes(b"b")
    plan = plan_extraction(source, store, IDENTITY, LIMITS)

    write_pending(store, GOOD, plan)
    write_pending(store, OTHER, other)
    commit_extraction(other, [OTHER], store, IDENTITY, settings, 0.0)
    with pytest.raises(ConflictError, match="Start this command again"):
        commit_extraction(plan, [GOOD], store, IDENTITY, settings, 0.0)
    again = plan_extraction(source, store, IDENTITY, LIMITS)
    assert again.pending["item_id"].to_pylist() == ["b"]
    write_pending(store, GOOD, again)
    manifest, _ = commit_extraction(again, [GOOD], store, IDENTITY, settings, 0.0)
    assert manifest.rows == 2


def test_second_picture_of_one_name_is_rejected(tmp_path: Path) -> None:
    images, store = tmp_path / "images", Store.at(str(tmp_path / "features"))
    for name in ("a.png", "a.jpg", "b.jpg"):
        images.mkdir(exist_ok=True)
        (images / name).write_bytes(b"x")
    source = PictureSource(str(images))
    plan = plan_extraction(source, store, IDENTITY, LIMITS)
    assert plan.pending["uri"].to_pylist() == [f"{images}/a.jpg", f"{images}/b.jpg"]
    settings = extraction_settings(source, LIMITS)
    write_pending(store, GOOD, plan)
    manifest, reasons = commit_extraction(plan, [GOOD], store, IDENTITY, settings, 1.0)
    assert reasons == {"duplicate_id": 1}
    [name] = manifest.rejected
    detail = f"another picture has this item id: {images}/a.png"
    assert store.read_table(name)["detail"].to_pylist() == [detail]


def test_threads_of_one_process_give_each_picture_its_own_feature(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    files = {}
    for number in range(CHUNK + 9):
        noise = random.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).resize((70 + number, 80)).save(stream, "PNG")
        files[f"{number:03d}"] = stream.getvalue()
    files["005"] = files["005"][:60]  # cut off
    (tmp_path / "images").mkdir()
    for name, data in files.items():
        (tmp_path / "images" / f"{name}.png").write_bytes(data)
    source, store = PictureSource(str(tmp_path / "images")), Store.at(str(tmp_path / "features"))
    config = BackboneConfig(name="random-conv", batch=4)
    backbone = load_backbone(config)
    identity, preprocessing = describe(backbone)
    plan, progress = plan_extraction(source, store, identity, LIMITS), ProgressActor()
    extraction = ExtractionContext(
        plan=plan,
        store=store,
        backbone=config,
        identity=identity,
        preprocessing=preprocessing,
        limits=LIMITS,
        resources=ExtractResources(),
        progress_actor=LocalActor(progress),
    )
    rows = list(extract_in_process(extraction, len(plan.chunks) - 1, 3, backbone))
    written = [row["name"] for row in rows if row["name"]]
    settings = extraction_settings(source, LIMITS)
    manifest, reasons = commit_extraction(plan, written, store, identity, settings, 1.0)
    assert sum(row["computed"] for row in rows) == manifest.rows == len(files) - 1
    assert reasons == {"truncated": 1}
    assert progress.snapshot().amounts["rows"] == len(files)
    ids, feature_ND = load_features(store)
    assert ids.to_pylist() == sorted(set(files) - {"005"})
    pixels = [decode(files[name], preprocessing, LIMITS) for name in ids.to_pylist()]
    expected = backbone(torch.from_numpy(np.stack(pixels))).numpy().astype(np.float16)
    np.testing.assert_array_equal(feature_ND, expected)
