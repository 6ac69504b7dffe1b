"""A configuration's plain form says all of it, and its digest changes with any of it."""

import json
from dataclasses import dataclass, field, replace
from enum import StrEnum

import pytest

from visrec.config import digest, plain


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    parts: dict[str, Inner] = field(default_factory=lambda: {"a": Inner()})
    path: str | None = None


class Layout(StrEnum):
    NESTED = "nested"


def test_plain_is_what_json_can_hold() -> None:
    inner = {"rate": 0.1, "sizes": [1, 2]}
    expected = {"name": "x", "inner": inner, "parts": {"a": inner}, "path": None}
    assert plain(Outer()) == expected
    assert json.loads(json.dumps(plain(Outer()))) == expected
    assert plain([Inner(), (Inner(),)]) == [inner, [inner]]


def test_plain_leaves_scalars_and_classes_alone() -> None:
    assert plain(Layout.NESTED) is Layout.NESTED
    assert plain(Inner) is Inner
    assert [plain(value) for value in (1, 2.5, "a", None, True)] == [1, 2.5, "a", None, True]


@pytest.mark.parametrize(
    "other",
    [
        replace(Outer(), name="y"),
        replace(Outer(), path="x"),
        replace(Outer(), inner=Inner(rate=0.2)),
        replace(Outer(), inner=Inner(sizes=(2, 1))),
        replace(Outer(), parts={"b": Inner()}),
        replace(Outer(), parts={"a": Inner(), "b": Inner()}),
    ],
)
def test_the_digest_changes_with_any_field(other: Outer) -> None:
    assert digest(other) != digest(Outer())


def test_the_digest_is_stable() -> None:
    # A known value: a run id or a resumed run from yesterday must still be found tomorrow.
    # `printf '[{"a": 1, "b": [2, null]}]' | sha256sum`
    assert digest({"b": (2, None), "a": 1}) == "9d10a9653b7f8d8d"
    assert digest(Outer()) == digest(Outer())


def test_the_digest_tells_its_values_apart() -> None:
    assert digest("a", "b") != digest("ab")
    assert digest("a", "b") != digest("b", "a")
    assert digest() != digest(None)
