"""The windows that stand for several photographs of a thing."""

from pathlib import Path

from PIL import Image

from benchmarks.views import PATTERN, VIEWS, cut
from visrec.sources.name_patterns import NamePattern


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
