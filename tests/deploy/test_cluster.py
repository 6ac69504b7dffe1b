"""cluster.yaml, checked with Ray's own schema and defaults, and for what it must contain."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    """The file with Ray's defaults filled in."""
    written = yaml.safe_load((CHECKOUT / "cluster.yaml").read_text())
    prepared: dict[str, Any] = prepare_config(written)
    return prepared


def test_ray_accepts_cluster_yaml(config: dict[str, Any]) -> None:
    validate_config(config)


def test_ray_refuses_cluster_yaml_with_an_unknown_key(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["max_wokers"] = 2
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(config)


def test_every_machine_requires_a_token(config: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        starts = [c for c in config[f"{kind}_start_ray_commands"] if "ray start" in c]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_workers_are_spot_machines_with_their_own_role(config: dict[str, Any]) -> None:
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    roles = [kind["node_config"]["IamInstanceProfile"]["Name"] for kind in (head, gpu)]
    assert len(set(roles)) == 2
    assert gpu["min_workers"] == 0


def test_machines_run_the_installed_ray_and_the_locked_versions(config: dict[str, Any]) -> None:
    images = [config["docker"][f"{kind}_image"] for kind in ("head", "worker")]
    assert all(f":{version('ray')}-py311" in image for image in images)
    assert any("--constraint" in c and "requirements.lock" in c for c in config["setup_commands"])


def test_cluster_yaml_contains_no_secret() -> None:
    text = (CHECKOUT / "cluster.yaml").read_text().lower()
    assert not [word for word in ("aws_secret", "aws_access", "password") if word in text]
