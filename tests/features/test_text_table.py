"""A table of texts: only new and changed texts are embedded, and it holds exactly the items."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.features import feature_identity
from visrec.errors import InputError
from visrec.features.table import Manifest, load_features
from visrec.features.text_table import TextPlan, commit_texts, embed_texts, plan_texts, write_texts
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store


class Letters:
    """In place of a `TextEncoder`: counts two letters, and notes which texts it was given."""

    def __init__(self) -> None:
        self.identity = feature_identity(2)
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.seen.extend(texts)
        counts = [[1e9 if t == "huge" else t.count("a"), t.count("b")] for t in texts]
        return np.array(counts, np.float32).reshape(-1, 2)


class Shop:
    """A workspace whose texts are extracted without Ray, a few rows at a time."""

    def __init__(self, folder: Path) -> None:
        self.items, self.store = folder / "items.parquet", Store.at(str(folder / "text_features"))
        self.table = InputTable(uri=str(self.items), key="items")

    def write(self, titles: dict[str, str | None]) -> None:
        pq.write_table(
            pa.table({"item_id": list(titles), "title": list(titles.values())}), self.items
        )

    def plan(self) -> TextPlan:
        return plan_texts(self.table, self.store, feature_identity(2))

    def extract(self, rows: int = 3, max_rejected: float = 0.0) -> tuple[list[str], Manifest]:
        """The texts that were embedded, and the new manifest."""
        encoder: Any = Letters()
        plan, written = self.plan(), list[str]()
        for start in range(0, len(plan.pending), rows):
            chunk = plan.pending.slice(start, rows)
            feature_BD, _ = embed_texts(chunk, plan, self.store, encoder)
            written += write_texts(self.store, chunk, feature_BD, encoder.identity)
        manifest, _ = commit_texts(plan, written, self.store, encoder.identity, max_rejected)
        return encoder.seen, manifest

    def features(self) -> dict[str, list[float]]:
        item_ids, feature_ND = load_features(self.store)
        return dict(zip(item_ids.to_pylist(), feature_ND.tolist(), strict=True))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    shop.write({"1": "a", "2": "ab", "3": None, "4": "bb", "5": "aab", "6": "a"})
    return shop


def test_every_item_with_a_text_has_a_feature(shop: Shop) -> None:
    embedded, manifest = shop.extract()
    assert embedded == ["a", "ab", "bb", "aab", "a"]
    assert shop.features() == {"1": [1, 0], "2": [1, 1], "4": [0, 2], "5": [2, 1], "6": [1, 0]}
    assert manifest.rows == 5
    assert (shop.plan().items, len(shop.plan().rows)) == (6, 5)


def test_second_extraction_embeds_nothing_and_changes_nothing(shop: Shop) -> None:
    _, first = shop.extract()
    assert shop.extract() == ([], first)


def test_only_new_and_changed_texts_are_embedded(shop: Shop) -> None:
    _, first = shop.extract()
    # 1 changed, 2 is gone, 3 has a text now, 7 is item 5 under another name, 8 is new.
    shop.write({"1": "bbb", "3": "b", "4": "bb", "7": "aab", "6": "a", "8": "b"})
    embedded, manifest = shop.extract()
    assert embedded == ["bbb", "b", "b"]  # the two are of different chunks
    expected = {"1": [0, 3], "3": [0, 1], "4": [0, 2], "6": [1, 0], "7": [2, 1], "8": [0, 1]}
    assert shop.features() == expected
    assert manifest.digest != first.digest
    files = {entry.name for entry in shop.store.list("part-")}
    assert files == set(manifest.files)
    other = Shop(shop.items.parent / "other")
    other.items.parent.mkdir()
    other.write({"1": "bbb", "3": "b", "4": "bb", "7": "aab", "6": "a", "8": "b"})
    assert other.extract(rows=100)[1].digest == manifest.digest


def test_what_a_killed_extraction_has_written_is_used(shop: Shop) -> None:
    plan, encoder = shop.plan(), cast(Any, Letters())
    chunk = plan.pending.slice(0, 3)
    write_texts(
        shop.store, chunk, embed_texts(chunk, plan, shop.store, encoder)[0], encoder.identity
    )
    embedded, manifest = shop.extract()
    assert embedded == ["aab"]  # the last text, "a", is on disk under another id
    assert manifest.rows == 5


def test_text_whose_feature_is_too_large_is_rejected(shop: Shop) -> None:
    shop.write({"1": "huge", "2": "b"})
    with pytest.raises(InputError, match=r"1 of 2 texts were rejected \(1 feature_not_finite\)"):
        shop.extract()
    _, manifest = shop.extract(max_rejected=0.5)
    assert shop.features() == {"2": [0, 1]}
    assert sum(manifest.rejected.values()) == 1


def test_items_without_any_text_are_refused(shop: Shop) -> None:
    shop.write({"1": None, "2": " "})
    with pytest.raises(InputError, match="None of the 2 items"):
        shop.plan()


def test_item_with_two_texts_is_refused(shop: Shop) -> None:
    rows = pa.table({"item_id": ["1", "1"], "title": ["a", "b"]})
    pq.write_table(rows, shop.items)
    with pytest.raises(InputError, match="one row per item"):
        shop.plan()


def test_features_of_another_model_are_refused(shop: Shop) -> None:
    shop.extract()
    with pytest.raises(InputError, match=r"--text\.model"):
        plan_texts(shop.table, shop.store, feature_identity(3))
