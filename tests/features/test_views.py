"""Several pictures of an item: listed, planned, pooled and committed, without Ray."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrec.errors import InputError
from visrec.features.commit import commit_extraction, write_part, write_rejected
from visrec.features.decode import PictureLimits
from visrec.features.extract import pool_items
from visrec.features.planning import (
    CHUNK,
    ExtractionPlan,
    _chunks,
    extraction_settings,
    plan_extraction,
)
from visrec.features.pooling import combine_digests, item_sources, pool_features
from visrec.features.table import Identity, Manifest
from visrec.ids import TEXT
from visrec.sources import views as views_module
from visrec.sources.images import PictureSource, list_pictures
from visrec.sources.views import natural_key, order_views
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store

IDENTITY = Identity(
    backbone="b", weights_digest="0" * 8, preprocessing={}, precision="float32", dim=2
)
LIMITS = PictureLimits()


def names_in(images: Path, *names: str) -> PictureSource:
    for name in names:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(name.encode())
    return PictureSource(str(images), "{item_id}_{view}.jpg")


def planned(source: PictureSource, store: Store) -> ExtractionPlan:
    return plan_extraction(source, store, IDENTITY, LIMITS)


def read(table: pa.Table) -> list[tuple[str, str | None]]:
    return list(zip(table["item_id"].to_pylist(), table["view"].to_pylist(), strict=True))


def worked(
    source: PictureSource, store: Store, plan: ExtractionPlan, bad: dict[str, str]
) -> Manifest:
    """What the chain would do with the pending pictures; `bad` has reasons by `item view`."""
    written = []
    rows = plan.pending.to_pylist()
    reasons = [bad.get(f"{row['item_id']} {row['view']}") for row in rows]
    used = plan.pending.filter(pa.array([not reason for reason in reasons], pa.bool_()))
    if used.num_rows:
        items = item_sources(used)
        items = items.append_column("digest", pa.array(["d"] * len(items)))
        feature_BD = np.ones((len(items), 2), np.float16)
        written.append(write_part(store, items, feature_BD, IDENTITY))
    if any(reasons):
        lost = plan.pending.filter(pa.array([bool(reason) for reason in reasons]))
        why = pa.array([reason for reason in reasons if reason])
        lost = lost.drop_columns(["reason", "detail"])
        lost = lost.append_column("reason", why).append_column("detail", why)
        table = lost.select(REJECTED.names).cast(REJECTED)
        written.append(write_rejected(store, table, IDENTITY))
    settings = extraction_settings(source, LIMITS)
    return commit_extraction(plan, written, store, IDENTITY, settings, 1.0)[0]


# ----------------------------------------------------------------------------------------- listing


@pytest.mark.parametrize(
    "ordered", [["1", "2", "10"], ["a2b", "a10b"], ["01", "2"], ["", "1", "a"], ["x", "x1", "xa"]]
)
def test_numbers_in_views_are_sorted_by_value(ordered: list[str]) -> None:
    assert sorted({*ordered}, key=natural_key) == ordered


@given(st.lists(st.text("a1²٣_", max_size=6)))
def test_any_texts_can_be_sorted_as_views(texts: list[str]) -> None:
    keys = [natural_key(text) for text in sorted(texts, key=natural_key)]
    assert all(one <= other for one, other in pairwise(keys))


def test_files_are_views_in_natural_order(tmp_path: Path) -> None:
    names = ["b_2.jpg", "b_10.png", "b_1.webp", "a.jpg", "b.jpg", "c_front.jpg", "c_back.jpg"]
    source = names_in(tmp_path / "images", *names, "b_2.gif")
    plan = planned(source, Store.at(str(tmp_path / "features")))
    assert read(plan.listing) == [
        *(("a", None), ("b", None), ("b", "1"), ("b", "2"), ("b", "10")),
        *(("c", "back"), ("c", "front")),
    ]
    assert read(plan.rejected) == [("b", "2")]
    assert plan.rejected["detail"][0].as_py().endswith("b_2.jpg")
    assert (plan.picture_count, plan.unmatched) == (8, 2)


@pytest.mark.parametrize("pattern", ["{item_id}-{view}", "{item_id}/{view}"])
def test_pattern_that_matches_no_name_is_refused(tmp_path: Path, pattern: str) -> None:
    source = names_in(tmp_path, "a_1.jpg", "a_2.jpg")
    with pytest.raises(InputError, match="matches none of the 2 pictures") as caught:
        list(list_pictures(PictureSource(source.uri, pattern)))
    assert caught.value.key == "image_pattern"
    assert "_1.jpg" in str(caught.value)


def table_in(folder: Path, **columns: Any) -> PictureSource:
    pq.write_table(pa.table(columns), folder / "images.parquet", row_group_size=2)
    return PictureSource(str(folder / "images.parquet"))


def test_rows_of_parquet_are_views_in_their_order(tmp_path: Path) -> None:
    ids, images = ["b", "a", "b", "b", "c"], [bytes([n]) for n in range(5)]
    source = table_in(tmp_path, item_id=ids, image=images)
    listing = planned(source, Store.at(str(tmp_path / "f"))).listing
    assert read(listing) == [("a", None), ("b", "1"), ("b", "2"), ("b", "3"), ("c", None)]
    places = zip(listing["row_group"].to_pylist(), listing["row"].to_pylist(), strict=True)
    assert list(places) == [(0, 1), (0, 0), (1, 0), (1, 1), (2, 0)]


def test_column_of_views_orders_uris(tmp_path: Path) -> None:
    uris = ["/z", "/y", "/x", "/w", "/z"]
    source = table_in(tmp_path, item_id=["a"] * 5, uri=uris, view=[10, 9, 1, None, 10])
    plan = planned(source, Store.at(str(tmp_path / "f")))
    assert plan.listing["uri"].to_pylist() == ["/w", "/x", "/y", "/z"]
    assert plan.rejected["reason"].to_pylist() == ["duplicate_id"]
    without = table_in(tmp_path, item_id=["a"] * 5, uri=uris)
    assert planned(without, Store.at(str(tmp_path / "f"))).listing["uri"].to_pylist() == uris[:4]


def test_row_that_a_join_has_repeated_is_one_view(tmp_path: Path) -> None:
    source = table_in(tmp_path, item_id=["a", "b"] * 9, uri=["/a@2x.jpg", "http://u:p@h/b"] * 9)
    plan = planned(source, Store.at(str(tmp_path / "f")))
    assert read(plan.listing) == [("a", None), ("b", None)]
    details = set(plan.rejected["detail"].to_pylist())
    assert details == {
        "another picture has this item id: /a@2x.jpg",
        "another picture has this item id: http://***@h/b",
    }


def test_pattern_for_parquet_is_refused(tmp_path: Path) -> None:
    source = table_in(tmp_path, item_id=["a"], uri=["/a"])
    with pytest.raises(InputError, match="only for names of files"):
        list(list_pictures(PictureSource(source.uri, "{item_id}_{view}")))


def test_item_with_too_many_views_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visrec.features.planning.MAX_VIEWS", 3)
    source = names_in(tmp_path / "images", *(f"a_{n}.jpg" for n in range(12)), "b_1.jpg")
    plan = planned(source, Store.at(str(tmp_path / "features")))
    assert read(plan.listing) == [("a", "0"), ("a", "1"), ("a", "2"), ("b", "1")]
    assert plan.rejected["reason"].to_pylist() == ["too_many_views"] * 9
    assert plan.picture_count == 13


def test_hint_names_the_pattern(tmp_path: Path) -> None:
    source = names_in(tmp_path / "images", *(f"SKU{n}_{v}.jpg" for n in range(5) for v in (1, 2)))
    store = Store.at(str(tmp_path / "features"))
    assert planned(source, store).hint == ""
    assert "'{item_id}_{view}'" in planned(PictureSource(source.uri), store).hint


@given(st.lists(st.integers(1, 70), max_size=20))
def test_no_item_is_in_two_chunks(counts: list[int]) -> None:
    ids = [str(n) for n, count in enumerate(counts) for _ in range(count)]
    bounds = _chunks(pa.chunked_array([pa.array(ids, TEXT)]))
    chunks = [ids[a:b] for a, b in pairwise(bounds)]
    assert [one for chunk in chunks for one in chunk] == ids
    assert all(set(a).isdisjoint(b) for a, b in pairwise(chunks))
    assert all(0 < len(chunk) <= max(CHUNK, *counts) for chunk in chunks)


# ----------------------------------------------------------------------------------------- pooling


def test_pooled_feature_has_the_mean_direction_and_the_mean_length() -> None:
    feature_VD = np.array([[8, 0], [0, 2]], np.float16)
    pooled_D = pool_features(feature_VD)
    np.testing.assert_allclose(pooled_D, np.array([5, 5]) / np.sqrt(2), rtol=1e-3)
    one = np.array([[3.14, -7]], np.float16)
    assert pool_features(one).tobytes() == one.tobytes()
    same = np.repeat(np.random.default_rng(0).normal(size=(1, 99)), 5, axis=0).astype(np.float16)
    np.testing.assert_allclose(pool_features(same), same[0], rtol=2e-3)
    for odd in ([[0, 0], [0, 0]], [[1, 0], [-1, 0]], [[0, 0], [4, 0]]):
        assert np.isfinite(pool_features(np.array(odd, np.float16))).all()


def test_rejected_view_is_left_out_of_its_item() -> None:
    batch = {
        "item_id": np.array(list("aaabbcd"), object),
        "digest": np.array([f"d{n}" for n in range(7)], object),
        "source": np.array(["s0", "s1", "s2", "s3", "", "s5", "s6"], object),
        "reason": np.array(["corrupt", "", "", "", "", "truncated", "reuse"], object),
    }
    feature_BD = np.arange(14).reshape(7, 2).astype(np.float16)
    found = pool_items(batch, feature_BD)
    expected = ["corrupt", "", "pooled", "", "pooled", "truncated", "reuse"]
    assert found["reason"].tolist() == expected
    np.testing.assert_array_equal(found["feature"][1], pool_features(feature_BD[1:3]))
    assert found["item_digest"][1] == combine_digests(["d1", "d2"])
    assert found["item_source"][1] == combine_digests(["s1", "s2"])
    assert (found["item_digest"][6], found["item_source"][3]) == ("d6", "")


# ------------------------------------------------------------------------------ planning and commit


def test_added_removed_or_changed_view_makes_only_its_item_again(tmp_path: Path) -> None:
    images, store = tmp_path / "images", Store.at(str(tmp_path / "features"))
    source = names_in(images, "a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg", "c_1.jpg")
    assert worked(source, store, planned(source, store), {}).rows == 3
    assert planned(source, store).pending.num_rows == 0
    names_in(images, "a_3.jpg")
    (images / "b_2.jpg").unlink()
    plan = planned(source, store)
    assert read(plan.pending) == [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1")]
    assert worked(source, store, plan, {}).rows == 3
    (images / "c_1.jpg").write_bytes(b"another picture")
    assert read(planned(source, store).pending) == [("c", "1")]


def test_item_is_rejected_only_with_all_its_views(tmp_path: Path) -> None:
    images, store = tmp_path / "images", Store.at(str(tmp_path / "features"))
    source = names_in(images, "a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg", "c_1.jpg")
    bad = {"a 1": "corrupt", "b 1": "corrupt", "b 2": "truncated"}
    manifest = worked(source, store, planned(source, store), bad)
    [name] = manifest.rejected
    rejected = store.read_table(name)
    assert read(rejected) == [("a", "1"), ("b", "1"), ("b", "2")]
    parts = [store.read_table(name) for name in manifest.files]
    assert sorted(pa.concat_tables(parts)["item_id"].to_pylist()) == ["a", "c"]
    again = planned(source, store)
    assert (again.pending.num_rows, read(again.rejected)) == (0, read(rejected))
    manifest = worked(source, store, again, {})
    assert (manifest.rows, sum(manifest.rejected.values())) == (2, 3)


def test_view_that_could_not_be_read_is_tried_again_with_its_item(tmp_path: Path) -> None:
    images, store = tmp_path / "images", Store.at(str(tmp_path / "features"))
    source = names_in(images, "a_1.jpg", "a_2.jpg", "b_1.jpg")
    worked(source, store, planned(source, store), {"a 2": "unreadable"})
    plan = planned(source, store)
    assert read(plan.pending) == [("a", "1"), ("a", "2")]
    manifest = worked(source, store, plan, {"a 2": "unreadable"})
    assert (manifest.rows, sum(manifest.rejected.values())) == (2, 1)
    manifest = worked(source, store, planned(source, store), {})
    assert (manifest.rows, sum(manifest.rejected.values())) == (2, 0)
    assert planned(source, store).pending.num_rows == 0


def test_picture_without_a_source_that_is_rejected_loses_its_feature(tmp_path: Path) -> None:
    source = table_in(tmp_path, item_id=["a", "b"], uri=["/a", "/b"])
    store = Store.at(str(tmp_path / "features"))
    assert worked(source, store, planned(source, store), {}).rows == 2
    manifest = worked(source, store, planned(source, store), {"b None": "unreadable"})
    assert (manifest.rows, sum(manifest.rejected.values())) == (1, 1)
    assert worked(source, store, planned(source, store), {}).rows == 2


def test_another_pattern_makes_the_items_again(tmp_path: Path) -> None:
    source = names_in(tmp_path / "images", "a_1.jpg", "a_2.jpg")
    store = Store.at(str(tmp_path / "features"))
    one = PictureSource(source.uri)
    assert worked(one, store, planned(one, store), {}).rows == 2
    manifest = worked(source, store, planned(source, store), {})
    assert (manifest.rows, manifest.image_pattern) == (1, "{item_id}_{view}.jpg")


def test_order_of_an_empty_listing_is_empty() -> None:
    from visrec.sources.images import LISTING_SCHEMA

    views, others = order_views(LISTING_SCHEMA.empty_table())
    assert (len(views), len(others)) == (0, 0)
    assert views_module.MAX_VIEWS >= 20
