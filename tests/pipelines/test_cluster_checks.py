"""Checks of a cluster's nodes: the node that differs is named, and open clusters fail."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import ray

from visrec.pipelines import cluster_checks
from visrec.pipelines.cluster_checks import (
    Node,
    NodeAnswer,
    check_clocks,
    check_session_disk,
    check_token,
    check_versions,
    check_workspace_access,
    installed_versions,
)
from visrec.storage.preflight import Finding

HERE = installed_versions()


def make_node(address: str = "192.0.2.1", clock_skew: float = 0.0, **changes: Any) -> Node:
    answer = NodeAnswer(
        clock=0.0,
        versions=HERE,
        auth_mode="token",
        disk_free=10**10,
        disk_use=0.5,
        workspace_error="",
    )
    return Node(address, answer._replace(**changes), clock_skew)


def check_token_of_cluster(nodes: list[Node]) -> Finding:
    return check_token(nodes, is_local=False)


def check_access_on_s3(nodes: list[Node]) -> Finding:
    return check_workspace_access(nodes, on_s3=True)


CHECKS: dict[str, tuple[Callable[[list[Node]], Finding], Node, str]] = {
    "versions": (
        check_versions,
        make_node("192.0.2.2", versions={**HERE, "ray": "2.9.0"}),
        "ray 2.9.0 on 192.0.2.2",
    ),
    "clocks": (
        check_clocks,
        make_node("192.0.2.2", clock_skew=600.0),
        "600 s off on 192.0.2.2",
    ),
    "token auth": (
        check_token_of_cluster,
        make_node("192.0.2.2", auth_mode="unset"),
        "RAY_AUTH_MODE unset on 192.0.2.2",
    ),
    "disk of Ray's session": (
        check_session_disk,
        make_node("192.0.2.2", disk_use=0.97),
        "full to 97% on 192.0.2.2",
    ),
    "workspace from nodes": (
        check_access_on_s3,
        make_node("192.0.2.2", workspace_error="an error (AccessDenied)"),
        "an error (AccessDenied) on 192.0.2.2",
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_node_that_differs_fails_its_check_and_no_other(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(cluster_checks, "_jobs_api_status_without_token", lambda: 401)
    _, odd_node, found = CHECKS[name]
    for nodes, failing in (
        ([make_node(), make_node("192.0.2.3")], set()),
        ([make_node(), odd_node], {name}),
    ):
        findings = {key: check(nodes) for key, (check, *_) in CHECKS.items()}
        assert {finding.name for finding in findings.values()} == set(CHECKS)
        assert {key for key, finding in findings.items() if not finding.passed} == failing
    assert found in findings[name].found
    assert findings[name].advice


@pytest.fixture
def jobs_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A Jobs API that answers with the status in the dict, and puts there what it was sent."""
    api: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api["path"], api["token"] = self.path, self.headers.get("Authorization")
            self.send_response(api["status"])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{server.server_port}"
        monkeypatch.setattr(ray._private.worker, "get_dashboard_url", lambda: url)
        yield api
        server.shutdown()


@pytest.mark.parametrize(("status", "passes"), [(401, True), (403, True), (200, False)])
def test_cluster_whose_jobs_api_answers_without_a_token_fails(
    jobs_api: dict[str, Any], status: int, passes: bool
) -> None:
    jobs_api["status"] = status
    finding = check_token([make_node()], is_local=False)
    assert finding.passed is passes
    assert (jobs_api["path"], jobs_api["token"]) == ("/api/jobs/", None)
    assert ("let in (200)" in finding.found) is not passes
