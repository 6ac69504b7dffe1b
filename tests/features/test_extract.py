"""What a commit makes of rejections, without Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visrec.features.extract import commit, make_plan
from visrec.features.pictures import PictureLimits
from visrec.features.table import Identity, features_table, rejected_table
from visrec.storage import Store

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
