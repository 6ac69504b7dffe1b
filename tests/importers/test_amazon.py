"""Amazon Reviews of 2018 and 2023."""

from pathlib import Path

import pytest

from tests.importers.imports import (
    REVIEW,
    gzipped_lines,
    imported,
    json_lines,
    pairs,
    rows,
    titles,
    write,
)
from visrec.errors import InputError


def test_amazon_reviews_of_2023_with_pictures(tmp_path: Path) -> None:
    source = write(
        tmp_path / "amazon",
        Art__jsonl__gz=gzipped_lines(
            {"rating": 5.0, "title": "x", "images": [], "asin": "B1", "parent_asin": "P1",
             "user_id": "A", "timestamp": 1588687728923, "verified_purchase": True},
            {"rating": 1.0, "asin": "B2", "parent_asin": "P2", "user_id": None,
             "timestamp": 1588687728923},
        ),
        meta_Art__jsonl__gz=gzipped_lines(
            {"parent_asin": "P1", "title": "Brush", "main_category": "Arts", "price": None,
             "images": [{"thumb": "https://x/t.jpg", "large": "https://x/l.jpg",
                         "hi_res": "https://x/h.jpg", "variant": "MAIN"}]},
            {"parent_asin": "P2", "title": "Nothing", "main_category": None, "images": []},
        ),
    )  # fmt: skip
    workspace, summary = imported(source, "amazon", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == [
        ("A", "P1", 5.0, 1588687728)
    ]
    assert summary["left out"] == {"without user_id": 1}
    assert titles(workspace) == {"P1": "Brush", "P2": "Nothing"}
    pictures = workspace / "images" / "pictures.parquet"
    assert rows(pictures, "item_id", "uri") == [("P1", "https://x/h.jpg")]


def test_amazon_reviews_of_2018(tmp_path: Path) -> None:
    source = write(
        tmp_path / "amazon",
        AMAZON_FASHION__json__gz=gzipped_lines(
            {"overall": 4.0, "reviewerID": "A", "asin": "B1", "unixReviewTime": 1413763200}
        ),
    )
    workspace, _ = imported(source, "amazon", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == [
        ("A", "B1", 4.0, 1413763200)
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("Books.json", "CDs.json"),
        ("Books.json", "Books_5.json"),
        ("CDs.json", "meta_Books.json"),
        ("Books.json", "meta_Books.json", "meta_CDs.json"),
    ],
)
def test_amazon_files_of_several_categories_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(
        tmp_path / "amazon", **{name.replace(".", "__"): json_lines(REVIEW) for name in names}
    )
    with pytest.raises(InputError, match=f"Found {', '.join(names)} .* same category"):
        imported(source, "amazon", tmp_path)


def test_repeated_product_of_amazon_is_one_item_with_its_first_values(tmp_path: Path) -> None:
    product = {"asin": "B1", "title": "Brush", "imUrl": "https://x/1.jpg"}
    source = write(
        tmp_path / "amazon",
        reviews_Art_5__json=json_lines(REVIEW),
        meta_Art__json=json_lines(product, {**product, "title": "Brush, again"}, {"asin": " "}),
    )
    workspace, summary = imported(source, "amazon", tmp_path)
    assert rows(workspace / "items.parquet", "item_id", "title") == [("B1", "Brush")]
    pictures = workspace / "images" / "pictures.parquet"
    assert rows(pictures, "item_id", "uri") == [("B1", "https://x/1.jpg")]
    assert summary["left out"] == {"repeated items": 1, "items without item_id": 1}


def test_amazon_values_of_other_types_become_text(tmp_path: Path) -> None:
    source = write(
        tmp_path / "amazon",
        Art__json="\n" + json_lines(REVIEW, {**REVIEW, "reviewerID": 7}),
        meta_Art__json=json_lines(
            {"asin": "B1", "title": "Brush"},
            {"asin": 12, "title": 5, "imageURLHighRes": ["https://x/1.jpg"]},
            {"asin": "B3", "title": float("nan"), "images": [{"large": "https://x/2.jpg", "n": 1}]},
        ),
    )
    workspace, _ = imported(source, "amazon", tmp_path)
    assert pairs(workspace) == [("A", "B1"), ("7", "B1")]
    assert titles(workspace) == {"B1": "Brush", "12": "5", "B3": None}
    pictures = workspace / "images" / "pictures.parquet"
    found = rows(pictures, "item_id", "uri")
    assert found == [("12", "https://x/1.jpg"), ("B3", "https://x/2.jpg")]


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        (b'{"reviewerID": "\xe9"}\n', r"found the line .* expected a JSON object in UTF-8"),
        (b'{"reviewerID": \n', "found the line .*reviewerID"),
        (b'{"unixReviewTime": "soon"}\n', "the field unixReviewTime: .*soon"),
    ],
)
def test_damaged_amazon_review_is_refused_and_shown(
    review: bytes, expected: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "amazon", Art__json=json_lines(REVIEW).encode() + review)
    with pytest.raises(InputError, match=expected):
        imported(source, "amazon", tmp_path)
