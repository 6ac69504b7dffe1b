"""Pictures from a server that fails and throttles are all fetched or named, and fetched again only
if they have changed (promise 6).

A real HTTP server in this process fails 5 % of the requests, in turn by an answer 500, by a body
that ends early and by hanging up; it answers 429 above a rate. The extraction is the real one.
"""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.chaos.harness import amount, measured
from tests.http_server import Faults, Page, PictureServer
from tests.integration.test_extract import features, rejected
from tests.integration.workspace import run_extract

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

FAULTS = {"500", "cut off", "hang up", "429"}


def picture(seed: int, size: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def answers(server: PictureServer) -> tuple[Counter[str], Counter[str]]:
    """How often each status was answered, and each failure, and counts anew."""
    faults = Counter({k: n for k, n in server.statuses.items() if k in FAULTS})
    statuses = server.statuses - faults
    assert server.requests.total() == statuses.total() + faults.total()
    server.forget()
    return statuses, faults


@pytest.mark.usefixtures("ray_cluster")
def test_pictures_of_a_failing_server_are_fetched_or_named_and_again_only_if_changed(
    tmp_path: Path,
) -> None:
    count = amount(200, 5000)
    numbers = range(count)
    gone = {n for n in numbers if n % 100 == 3}
    damaged = {n for n in numbers if n % 100 == 7}
    unmarked = {n for n in numbers if n % 50 == 11}  # without ETag and Last-Modified
    dated = {n for n in numbers if n % 2}  # without an ETag
    second = {n for n in numbers if n % 100 == 20}  # the next picture is of the same item

    def page(n: int, seed: int) -> Page:
        data = picture(seed)
        data = data[: len(data) // 2] if n in damaged else data
        modified = None if n in unmarked else 1e9 + seed
        return Page(data, etag=n not in dated | unmarked, modified=modified)

    pages = {f"/{n}.jpg": page(n, n) for n in numbers if n not in gone}
    faults = Faults(fail_every=20, requests_per_s=amount(100, 60), retry_after=str(amount(0, 1)))
    with PictureServer(pages, faults) as server:
        table = {
            "item_id": [str(n - 1 if n - 1 in second else n) for n in numbers],
            "uri": [server.uri(f"/{n}.jpg", "me:secret@") for n in numbers],
        }
        pq.write_table(pa.table(table), tmp_path / "images.parquet")
        items = count - len(second) - len(gone) - len(damaged)

        def night() -> tuple[dict[str, bytes], dict[str, str], Counter[str], Counter[str]]:
            summary = run_extract(tmp_path, images=str(tmp_path / "images.parquet"))
            found, bad = features(tmp_path), rejected(tmp_path)
            in_views = summary.rows["pictures"] - summary.rows["rejected"]
            assert (summary.rows["pictures"], in_views) == (count, count - len(bad))
            assert len(found) + len(second) == in_views
            statuses, failures = answers(server)
            computed = summary.rows["run through the network"]
            statuses["computed"] = computed
            return found, bad, statuses, failures

        first, bad, statuses, failed_first = night()
        assert len(first) == items
        assert {int(n) for n, why in bad.items() if why == "unreadable"} == gone
        assert {int(n) for n, why in bad.items() if why == "truncated"} == damaged
        fetched = count - len(gone)
        assert statuses == {"200": fetched, "404": len(gone), "computed": fetched - len(damaged)}

        changed = {n for n in numbers if n % 50 == 1} | {n for n in second if n % 200 == 20}
        for n in changed:
            pages[f"/{n}.jpg"] = page(n, n + 1_000_000)
        now, bad_now, statuses, failed_second = night()
        # The other picture of an item whose first one has changed is needed as well: it is asked
        # for once more.
        again = changed | unmarked | {n + 1 for n in changed & second}
        assert statuses["200"] == len(again)
        assert statuses["304"] == fetched - len(changed | unmarked)
        assert statuses["404"] == len(gone)
        assert statuses["computed"] == len(changed) + len(changed & second)
        assert bad_now == bad
        assert {int(n) for n in first if now[n] != first[n]} == changed

        for n in gone:
            pages[f"/{n}.jpg"] = page(n, n)
        third, bad_third, statuses, _ = night()
        assert set(third) == set(first) | {str(n) for n in gone}
        assert {int(n) for n in bad_third} == damaged
        assert statuses["200"] == len(gone) + len(unmarked)
        assert statuses["computed"] == len(gone)
    for path in (tmp_path / "features").rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()
    measured(
        6,
        pictures=count,
        features=items,
        rejected=len(bad),
        lost=0,
        fetched_second_night=len(again),
        not_sent_second_night=fetched - len(changed | unmarked),
        throttled=(failed_first + failed_second)["429"],
        failed=(failed_first + failed_second).total() - (failed_first + failed_second)["429"],
    )
