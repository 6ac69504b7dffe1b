"""Starting a local Ray session or joining a cluster, and the errors of both."""

import os
from typing import Any

import pytest
import ray
from ray._private import ray_constants

from tests.servers import free_ports
from visrec.cli import cluster
from visrec.cli.cluster import cluster_address, start_ray
from visrec.errors import InputError, VisrecError


@pytest.fixture(autouse=True)
def keep_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the Ray of the test session alive when a failed start shuts Ray down."""
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_TOKEN", "RAY_BACKEND_LOG_LEVEL"):
        monkeypatch.setenv(name, "")  # restored after the test
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)


def fake_starts(
    monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None
) -> list[dict[str, Any]]:
    """Makes `ray.init` raise or return these outcomes in turn; returns the calls."""
    calls: list[dict[str, Any]] = []

    def init(*_: Any, **keys: Any) -> None:
        calls.append(keys)
        outcome = outcomes[len(calls) - 1]
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(ray, "init", init)
    return calls


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, ("no Ray cluster", "--local", "ray job submit")),
        ("", ("no Ray cluster",)),
        ("http://me:secret@10.0.0.3:8265", ("dashboard", "http://***@10.0.0.3", "ray job submit")),
        ("https://ray.example", ("dashboard",)),
        ("auto", ("'auto'", "host:port")),
        ("local", ("'local'", "--local")),
        ("ray://head:10001", ("ray://head:10001", "host:port")),
        ("head", ("'head'", "host:port")),
    ],
)
def test_address_of_no_cluster_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, address: str | None, words: tuple[str, ...]
) -> None:
    calls = fake_starts(monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError) as caught:
        start_ray(local=False, debug=False)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)
    assert calls == []


def test_silent_cluster_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = fake_starts(monkeypatch)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster, "_ANSWER_TIMEOUT_S", 1)
    with pytest.raises(InputError, match=f"No Ray cluster answers at {address}"):
        start_ray(local=False, debug=False)
    assert calls == []


def test_cluster_that_refuses_the_job_is_an_input_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:6379")
    monkeypatch.setattr(cluster, "_require_answer", lambda _: None)
    fake_starts(monkeypatch, RuntimeError("Version mismatch: Ray 2.0\nand a stack"))
    with pytest.raises(
        InputError, match=r"10\.0\.0\.3:6379 .*Version mismatch: Ray 2\.0\. Expected"
    ) as caught:
        start_ray(local=False, debug=False)
    assert "\n" not in str(caught.value)


def test_joined_cluster_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:6379")
    monkeypatch.setattr(cluster, "_require_answer", lambda _: None)
    calls = fake_starts(monkeypatch, None)
    start_ray(local=False, debug=False)
    assert [call["address"] for call in calls] == ["10.0.0.3:6379"]
    assert capsys.readouterr().out == "Joined the Ray cluster at 10.0.0.3:6379.\n"


@pytest.mark.ray
def test_running_cluster_passes_the_check(
    ray_cluster: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = ray.get_runtime_context().gcs_address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() == address
    cluster._require_answer(address)


SLOW = Exception("The current node timed out during startup. This could happen because\nand so on")


def test_local_start_that_times_out_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_starts(monkeypatch, SLOW, None)
    start_ray(local=True, debug=False)
    assert len(calls) == 2
    assert "trying once more" in capsys.readouterr().out


def test_second_timeout_of_a_local_start_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_starts(monkeypatch, SLOW, SLOW)
    with pytest.raises(VisrecError, match=r"timed out during startup.*too busy") as caught:
        start_ray(local=True, debug=False)
    assert not isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_unusable_session_folder_is_refused_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/some/long/place")
    for error, word in (
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /some"), "too long"),
        (PermissionError(13, "Permission denied"), "may write to"),
    ):
        calls = fake_starts(monkeypatch, error)
        with pytest.raises(InputError, match=word) as caught:
            start_ray(local=True, debug=False)
        assert variable in str(caught.value)
        assert "'/some/long/place'" in str(caught.value)
        assert len(calls) == 1  # a second try would fail the same way


def test_local_session_needs_no_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token in the environment Ray would write one into the home directory."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is restored after the test
        monkeypatch.delenv(name)
    fake_starts(monkeypatch, None)
    start_ray(local=True, debug=False)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
