"""Several pictures an item: pooled, reused, and made again alone."""

from pathlib import Path

import numpy as np

from tests.integration.test_extract import blue_picture, computed_directly, features, rejected
from tests.integration.workspace import run_extract
from visrec.features.planning import CHUNK
from visrec.features.pooling import pool_features


def pooled(*pictures: Path) -> bytes:
    rows = [np.frombuffer(computed_directly(picture), np.float16) for picture in pictures]
    return pool_features(np.stack(rows)).tobytes()


def test_views_are_pooled_and_an_added_one_makes_its_item_again(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    items = 30  # with 3 views each: more than one task
    for n in range(items):
        for view in (1, 2, 10):
            (images / f"i{n}_{view}.png").write_bytes(blue_picture(100 * n + view))
    (images / "i0_2.png").write_bytes(b"no picture")
    for view in (1, 2):
        (images / f"lost_{view}.png").write_bytes(b"no picture")
    assert 3 * items > CHUNK
    pattern = {"image_pattern": "{item_id}_{view}.png", "max_rejected": 0.1}
    summary = run_extract(tmp_path, **pattern)
    assert summary.rows["run through the network"] == 3 * items - 1
    assert (summary.rows["pictures"], summary.rows["rejected"]) == (3 * items + 2, 3)
    found = features(tmp_path)
    assert len(found) == summary.rows["features"] == items
    assert rejected(tmp_path) == {"i0": "not_a_picture", "lost": "not_a_picture"}
    for n in (1, items - 1):
        assert found[f"i{n}"] == pooled(*(images / f"i{n}_{view}.png" for view in (1, 2, 10)))
    assert found["i0"] == pooled(images / "i0_1.png", images / "i0_10.png")
    assert run_extract(tmp_path, **pattern).rows["run through the network"] == 0

    (images / "i3_11.png").write_bytes(blue_picture(7))
    for view in (1, 2, 10):  # another item with the same pictures
        (images / f"twin_{view}.png").write_bytes(blue_picture(500 + view))
    summary = run_extract(tmp_path, **pattern)
    assert summary.rows["run through the network"] == 4
    after = features(tmp_path)
    assert after["i3"] != found["i3"]
    assert after["twin"] == found["i5"]
    assert {n: after[n] for n in found if n != "i3"} == {n: found[n] for n in found if n != "i3"}
