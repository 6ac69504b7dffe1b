"""The cluster is closed to who has no token, and a local one to other machines (promise 12)."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import amount, measured
from tests.cluster import TokenCluster
from tests.conftest import CHECKOUT

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.skipif(
        not amount(0, 1),
        reason="a second cluster is for make chaos; tests/test_servers.py has the short form",
    ),
]

ENTRIES = (
    *(("GET", "/api/version"), ("GET", "/api/jobs/"), ("GET", "/api/jobs/x")),
    *(("POST", "/api/jobs/"), ("POST", "/api/jobs/x/stop"), ("DELETE", "/api/jobs/x")),
    *(("GET", "/api/jobs/x/logs"), ("GET", "/api/packages/gcs/x.zip")),
    *(("PUT", "/api/packages/gcs/x.zip"), ("GET", "/nodes?view=summary")),
    *(("GET", "/api/cluster_status"), ("GET", "/logical/actors"), ("GET", "/api/v0/tasks")),
    *(("GET", "/api/v0/logs?node_id=x"), ("GET", "/worker/traceback?pid=1"), ("GET", "/events")),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TokenCluster]:
    with TokenCluster(num_cpus=1) as started:
        yield started


def answer(
    cluster: TokenCluster, method: str, path: str, authorization: str | None
) -> tuple[int, bytes]:
    """The status of a reply and what it says; a POST to the Jobs API would start a job."""
    job = {"entrypoint": "echo from a stranger"}
    body = json.dumps(job).encode() if method in ("POST", "PUT") else None
    request = urllib.request.Request(f"{cluster.dashboard}{path}", body, method=method)
    request.add_header("Content-Type", "application/json")
    if authorization is not None:
        request.add_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_jobs_api_is_closed_without_the_right_token(cluster: TokenCluster) -> None:
    token = cluster.token_path.read_text()
    strangers = {
        "no token": None,
        "an empty one": "Bearer ",
        "a wrong one": f"Bearer {'0' * 64}",
        "all but its end": f"Bearer {token[:-1]}",
        "as a password": f"Basic {token}",
    }
    found = {
        (who, method, path): answer(cluster, method, path, authorization)[0]
        for who, authorization in strangers.items()
        for method, path in ENTRIES
    }
    for method, path in ENTRIES:
        address = f"{path}{'&' if '?' in path else '?'}token={token}"
        found["in the address", method, path] = answer(cluster, method, address, None)[0]
    let_in = {what: status for what, status in found.items() if status not in (401, 403)}
    measured(12, requests_refused=len(found) - len(let_in), requests_let_in=len(let_in))
    assert let_in == {}
    status, jobs = answer(cluster, "GET", "/api/jobs/", f"Bearer {token}")
    assert status == 200
    # That of the fixture, by which it knows that the cluster takes jobs.
    assert {job["entrypoint"] for job in json.loads(jobs)} == {"true"}


LOCAL = """
from visrec.cli.cluster import start_ray
import ray
start_ray(local=True, debug=False)
ray.get(ray.remote(lambda: 1).remote())
print("ready", flush=True)
input()
"""


def listeners(root: int) -> set[tuple[str, str]]:
    """Address and port of every TCP listener of a process and those below it."""
    listening = {}
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[f"socket:[{fields[9]}]"] = tuple(fields[1].split(":"))
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_below(int(entry.name), root):
            for descriptor in (entry / "fd").glob("*"):
                try:
                    found.add(listening.get(os.readlink(descriptor), ("", "")))
                except OSError:
                    continue
    return found - {("", "")}


def is_below(pid: int, root: int) -> bool:
    while pid > 1 and pid != root:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == root


def is_loopback(address: str) -> bool:
    """Of an address as /proc/net writes it: words of four bytes, each with its last byte first."""
    if address == f"{'0' * 24}01000000":
        return True
    return address.endswith("7F") and address[:-8] in ("", f"{'0' * 16}FFFF0000")


def test_loopback_addresses_are_told_from_others() -> None:
    assert is_loopback("0100007F")
    assert is_loopback("0000000000000000FFFF00000100007F")
    assert is_loopback("00000000000000000000000001000000")
    for elsewhere in ("00000000", "0" * 32, "020200C0", "0000000000000000FFFF0000020200C0"):
        assert not is_loopback(elsewhere)


def test_a_local_cluster_listens_on_loopback_alone(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL],
        cwd=CHECKOUT,
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        found = listeners(process.pid)
    finally:
        process.communicate("\n")  # it ends, and its Ray with it
    assert found
    outside = {(address, port) for address, port in found if not is_loopback(address)}
    measured(12, listeners=len(found), listeners_off_loopback=len(outside))
    assert outside == set()
