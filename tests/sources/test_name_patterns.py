"""Names of files as items and views, and the pattern that is suggested for names."""

import pyarrow as pa
import pytest

from visrec.errors import InputError
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.name_patterns import NamePattern, guess_pattern, suggest_pattern


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("{item_id}_{view}.jpg", "SKU_1", ("SKU", "1")),
        ("{item_id}_{view}", "AB_12_front", ("AB_12", "front")),
        ("{item_id}_{view}", "2026/SKU_1", ("2026/SKU", "1")),
        ("{item_id}_{view}", "SKU", None),
        ("{item_id}_{view}", "SKU_", None),
        ("{item_id}/{view}.JPG", "SKU/1", ("SKU", "1")),
        ("{item_id}/{view}.*", "a/SKU/front view", ("a/SKU", "front view")),
        ("{item_id}/{view}", "SKU", None),
        ("{view}/{item_id}.png", "front/SKU", ("SKU", "front")),
        ("{view}/{item_id}", "front/x/SKU", ("x/SKU", "front")),
        ("*/{item_id}-{view}", "any/SKU-2", ("SKU", "2")),
        ("{item_id} ({view}).webp", "red shirt (2)", ("red shirt", "2")),
        ("photo-{item_id}.jpg", "photo-7", ("7", "photo-7")),
        ("{item_id}.{view}", "SKU.1.2", ("SKU.1", "2")),
        ("{item_id}/*.jpg", "SKU/1", ("SKU", "SKU/1")),
    ],
)
def test_name_is_split(pattern: str, name: str, expected: tuple[str, str] | None) -> None:
    assert NamePattern(pattern).split(name) == expected


@pytest.mark.parametrize(
    "pattern",
    ["", "{view}.jpg", "{item_id}{view}", "{item_id}_{item_id}", "{sku}_{view}", "{item_id}*",
     "{item_id}_{view}_{view}", "{item_id", "a_{item_id}}"],
)  # fmt: skip
def test_pattern_that_splits_no_name_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="--image_pattern") as caught:
        NamePattern(pattern)
    assert caught.value.key == "image_pattern"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{item_id}_{view}", "{0}_1 {0}_2"),
        ("{item_id}-{view}", "{0}-front {0}-back"),
        ("{item_id}/{view}", "{0}/1 {0}/2"),
        ("{item_id}.{view}", "{0}.1 {0}.2"),
        ("*/{item_id}_{view}", "2026/{0}_1 2026/{0}_2"),
        ("{view}/{item_id}", "front/{0} back/{0}"),
    ],
)
def test_pattern_is_suggested_where_ids_of_tables_do_not_match(pattern: str, names: str) -> None:
    items = [f"SKU{n}" for n in range(20)]
    found = [name for item in items for name in names.format(item).split(" ")]
    text = explain_id_mismatch(pa.array(items), "The first", pa.array(found), "the second")
    assert f"with --image_pattern '{pattern}'" in text
    assert found[0] in text
    assert NamePattern(pattern).split(found[0]) in ((items[0], "1"), (items[0], "front"))


def test_no_pattern_is_suggested_for_other_names() -> None:
    assert suggest_pattern(["x1", "y2"], {"SKU"}) is None
    assert "pattern" not in explain_id_mismatch(
        pa.array(["A_1"]), "The first", pa.array(["B_1", "B_2"]), "the second"
    )


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"SKU{n}_{view}" for n in range(9) for view in (1, 2, 3)], "{item_id}_{view}"),
        ([f"{n}/{view}" for n in range(9) for view in ("front", "back")], "{item_id}/{view}"),
        ([f"work-{n:05}" for n in range(300)], None),
        ([f"{n // 40:03}/{n:09}" for n in range(300)], None),
        ([f"{n:08x}-{n:04x}-4aaa-{n * 7919:012x}" for n in range(300)], None),
        (["a", "b"], None),
        ([], None),
    ],
)
def test_names_that_look_like_views_are_noticed(names: list[str], pattern: str | None) -> None:
    found = guess_pattern(names)
    assert (found and found[0]) == pattern
