"""Fixtures of the exports."""

import pytest

from visrec.exports import generations


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers of these tests do not need the second between switch and cleanup."""
    monkeypatch.setattr(generations, "READERS_GRACE_S", 0)
