"""What a commit makes of rejections, without Ray."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.errors import InputError
from visrec.features.decode import PictureLimits
from visrec.features.extract import commit, make_plan
from visrec.features.table import Identity, features_table, rejected_table
from visrec.storage.store import Store

IDENTITY = Identity(
    backbone="b", weights_digest="0" * 8, preprocessing={}, precision="float32", dim=2
)
LIMITS = PictureLimits()
GOOD, BAD = "part-good.parquet", "_rejected/part-bad.parquet"


def test_rejected_picture_without_a_source_mark_is_named_once_each_time(tmp_path: Path) -> None:
    images, store = str(tmp_path / "images.parquet"), Store.at(str(tmp_path / "features"))
    pq.write_table(pa.table({"item_id": ["a", "b"], "uri": ["/a.jpg", "/b.jpg"]}), images)
    none = pa.nulls(1, pa.string())
    good = pa.table({"item_id": ["a"], "digest": ["d"], "source": none})
    bad = pa.table({"item_id": ["b"], "reason": ["corrupt"], "detail": ["x"], "source": none})
    for _ in range(2):
        plan = make_plan(images, store, IDENTITY, LIMITS)
        assert plan.todo["item_id"].to_pylist() == ["a", "b"]
        store.write_table(GOOD, features_table(good, np.ones((1, 2), np.float16), IDENTITY))
        store.write_table(BAD, rejected_table(bad, IDENTITY))
        manifest, reasons = commit(plan, [GOOD, BAD], store, IDENTITY, LIMITS, 1.0)
        assert (manifest.rows, reasons) == (1, {"corrupt": 1})
        assert sum(manifest.rejected.values()) == 1


def test_what_could_not_be_read_is_looked_at_again(tmp_path: Path) -> None:
    """Leave to read it, or a store that answers again, changes nothing of the file itself."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(name.encode())
    store = Store.at(str(tmp_path / "features"))
    plan = make_plan(str(tmp_path / "images"), store, IDENTITY, LIMITS)
    marks = dict(
        zip(plan.todo["item_id"].to_pylist(), plan.todo["source"].to_pylist(), strict=True)
    )
    reasons = {"a": "unreadable", "b": "corrupt", "c": "out_of_memory"}
    rows = {"item_id": list(reasons), "reason": list(reasons.values()), "detail": ["x"] * 3}
    bad = pa.table({**rows, "source": [marks[name] for name in reasons]})
    store.write_table(BAD, rejected_table(bad, IDENTITY))
    commit(plan, [BAD], store, IDENTITY, LIMITS, 1.0)
    again = make_plan(str(tmp_path / "images"), store, IDENTITY, LIMITS)
    assert again.todo["item_id"].to_pylist() == ["a", "c"]
    assert again.rejected["item_id"].to_pylist() == ["b"]


def test_names_that_cannot_be_ids_count_as_rejected_pictures(tmp_path: Path) -> None:
    images, store = tmp_path / "images", Store.at(str(tmp_path / "features"))
    images.mkdir()
    (images / "a.jpg").write_bytes(b"a")
    (images / "notes.txt").write_bytes(b"a")
    with open(os.path.join(os.fsencode(images), b"caf\xe9.jpg"), "wb") as file:
        file.write(b"x")
    good = pa.table({"item_id": ["a"], "digest": ["d"], "source": pa.nulls(1, pa.string())})
    for _ in range(2):
        plan = make_plan(str(images), store, IDENTITY, LIMITS)
        good = good.set_column(2, "source", plan.listing["source"])
        assert (plan.listed, plan.left_out) == (2, {".txt": 1})
        store.write_table(GOOD, features_table(good, np.ones((1, 2), np.float16), IDENTITY))
        manifest, reasons = commit(plan, [GOOD], store, IDENTITY, LIMITS, 0.5)
        assert (manifest.rows, reasons) == (1, {"name_not_utf8": 1})
        [name] = manifest.rejected
        assert store.read_table(name)["item_id"].to_pylist() == ["caf\\xe9"]
        with pytest.raises(InputError, match="1 of 2 pictures were rejected"):
            commit(plan, [GOOD], store, IDENTITY, LIMITS, 0.4)


def test_second_rows_of_an_item_are_rejected_with_or_without_a_uri(tmp_path: Path) -> None:
    images, store = str(tmp_path / "images.parquet"), Store.at(str(tmp_path / "features"))
    table = pa.table({"item_id": ["a", "a", "a"], "uri": [None, "/b.jpg", "/a.jpg"]})
    pq.write_table(table, images)
    plan = make_plan(images, store, IDENTITY, LIMITS)
    assert plan.todo["uri"].to_pylist() == ["/a.jpg"]
    manifest, reasons = commit(plan, [], store, IDENTITY, LIMITS, 1.0)
    assert reasons == {"duplicate_id": 2}
    [name] = manifest.rejected
    said = "another picture has this item id:"
    details = store.read_table(name)["detail"].to_pylist()
    assert details == [f"{said} /b.jpg", f"{said} a row without a uri"]
