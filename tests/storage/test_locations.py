"""Locations as users write them."""

from pathlib import Path

import pytest

from visrec.errors import InputError
from visrec.storage.locations import normalize_location


@pytest.mark.parametrize("name", ["a b", "ä", "50%", "a%20b", "#1", "q?x=1"])
def test_file_uri_that_pathlib_writes_is_the_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert normalize_location(path.as_uri()) == str(path)
    assert normalize_location(str(path)) == str(path)


@pytest.mark.parametrize(
    "uri", ["file:/a/b", "file:///a/b/", "file:////a//b", "FILE://localhost/a/b"]
)
def test_every_form_of_a_file_uri_is_read(uri: str) -> None:
    assert normalize_location(uri) == "/a/b"


@pytest.mark.parametrize("uri", ["file:a", "file://host/a", "file:///a%00b", "file:///%ff"])
def test_file_uri_of_no_local_path_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="Found the location"):
        normalize_location(uri)
