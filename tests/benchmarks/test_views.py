"""The windows that stand for several photographs of a thing."""

from pathlib import Path

from PIL import Image

from benchmarks.views import PATTERN, VIEWS, compare, cut
from tests.benchmarks.test_quality import ITEMS, USERS, plant
from visrec.sources.name_patterns import NamePattern
from visrec.storage.store import Store


def test_windows_are_named_as_views_and_the_first_stands_alone(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (50, 40), "teal").save(images / "x_y.jpg")
    for folder in ("one", "other"):
        cut(images, tmp_path / folder)
    names = sorted(path.stem for path in (tmp_path / "one" / "all").iterdir())
    expected = [("x_y", str(view)) for view in range(1, VIEWS + 1)]
    assert [NamePattern(PATTERN).split(name) for name in names] == expected
    first = (tmp_path / "one" / "first" / "x_y.jpg").read_bytes()
    assert first == (tmp_path / "one" / "all" / "x_y_1.jpg").read_bytes()
    assert first == (tmp_path / "other" / "first" / "x_y.jpg").read_bytes()
    with Image.open(tmp_path / "one" / "first" / "x_y.jpg") as window:
        assert window.size == (30, 24)


def test_both_kinds_of_features_are_trained_on_and_rank_the_same_users(tmp_path: Path) -> None:
    plant(tmp_path)
    features = Store.at(str(tmp_path / "features"))
    base = ["--workspace", str(tmp_path), "--model.name=visrank", "--model.mode=mean"]
    found = compare(base, {"first": features, "pooled": features}, [0])
    assert (found["users"], found["items"]) == (USERS, ITEMS)
    paired = found["paired"]["visrank: pooled - first"]
    assert all(figures["mean"] == 0 for figures in paired.values())
