"""Fixtures of the suites of the promises."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from botocore.retries.standard import ExponentialBackoff

from tests.proxy import FaultProxy
from tests.servers import SeaweedFS
from visrec.storage.store import Store

if TYPE_CHECKING:
    from tests.chaos.night import Undisturbed


@pytest.fixture(scope="session")
def undisturbed_night(tmp_path_factory: pytest.TempPathFactory) -> "Undisturbed":
    """A night that nothing disturbed, with its workspace."""
    from tests.chaos.night import run_undisturbed

    return run_undisturbed(tmp_path_factory.mktemp("night"))


@pytest.fixture
def lists(s3_env: str) -> Store:
    """Where recommendations are published, empty, on the session's S3 server."""
    return Store.at(f"{s3_env}/recommendations")


@pytest.fixture
def proxy(s3: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as found:
        yield found


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that failed are tried again as often as ever, but at once."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
