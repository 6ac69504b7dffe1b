"""deploy/*.yaml, checked with the schemas of Kubernetes and KubeRay, and for required content."""

import copy
import inspect
import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.dashboard.modules.job import job_supervisor

from tests.deploy.crd import find_errors

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"
DOCUMENTS = [
    document
    for name in ("rayjob.yaml", "cronjob.yaml")
    for document in yaml.safe_load_all((DEPLOY / name).read_text())
]
WORKER = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
HEAD = ("spec", "rayClusterSpec", "headGroupSpec")
CRON_POD = ("spec", "jobTemplate", "spec", "template", "spec")
ATTEMPTS = 3  # of a night, by the script of that pod


def named(kind: str, name: str | None = None) -> dict[str, Any]:
    """A copy of the only document of a kind, or of the one with this name."""
    (found,) = [
        document
        for document in DOCUMENTS
        if document["kind"] == kind and name in (None, document["metadata"].get("name"))
    ]
    return copy.deepcopy(found)


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def pods() -> Iterator[dict[str, Any]]:
    """The pod specs of the head, the workers and the pod that starts a night."""
    job = named("RayJob")
    yield at(job, (*HEAD, "template", "spec"))
    yield at(job, (*WORKER, "template", "spec"))
    yield at(named("CronJob"), CRON_POD)


# The fields.


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata'].get('name', '')}"
)
def test_every_document_has_only_known_fields_with_the_right_types(
    document: dict[str, Any],
) -> None:
    assert find_errors(document) == []


@pytest.mark.parametrize(
    ("kind", "path", "key", "wrong"),
    [
        # Misspelt keys at all depths.
        ("RayJob", ("spec",), "backofLimit", 2),
        ("RayJob", ("spec", "rayClusterSpec"), "authOption", {"mode": "token"}),
        ("RayJob", ("spec", "rayClusterSpec", "authOptions"), "Mode", "token"),
        ("RayJob", ("spec", "rayClusterSpec", "autoscalerOptions"), "idleTimeout", 60),
        ("RayJob", WORKER, "maxReplica", 4),
        ("RayJob", (*WORKER, "template"), "serviceAccountName", "visrec-worker"),
        ("RayJob", (*WORKER, "template", "spec", "tolerations", 0), "efect", "NoSchedule"),
        ("RayJob", (*HEAD, "template", "spec", "containers", 0), "enviroment", []),
        ("RayJob", (*HEAD, "template", "spec", "volumes", 0, "emptyDir"), "size", "8Gi"),
        ("CronJob", ("spec",), "timezone", "Etc/UTC"),
        ("CronJob", ("spec", "jobTemplate"), "activeDeadlineSeconds", 1),
        ("CronJob", (*CRON_POD, "securityContext"), "runAsNonroot", True),
        ("RoleBinding", ("roleRef",), "namespace", "default"),
        # A wrong type, or a value that there is not.
        ("RayJob", ("spec",), "ttlSecondsAfterFinished", "600"),
        ("RayJob", ("spec", "rayClusterSpec"), "rayVersion", 2.6),
        ("RayJob", ("spec", "rayClusterSpec", "authOptions"), "mode", "tokens"),
        ("RayJob", (*HEAD, "rayStartParams"), "num-cpus", 6),
        ("RayJob", (*WORKER, "template", "spec", "nodeSelector"), "spot", True),
        ("RayJob", (*HEAD, "template", "spec", "containers", 0, "resources"), "limits", "7"),
        (
            "RayJob",
            (*HEAD, "template", "spec", "containers", 0, "resources", "limits"),
            "memory",
            "26 GB",
        ),
        ("CronJob", ("spec",), "concurrencyPolicy", "Forbidden"),
        ("ConfigMap", ("data",), "RETRIES", 3),
        # Something that must be there.
        ("RayJob", ("spec", "rayClusterSpec"), "headGroupSpec", None),
        ("RayJob", WORKER, "minReplicas", None),
        ("RayJob", WORKER, "groupName", None),
        ("RayJob", (*WORKER, "template", "spec"), "containers", None),
        ("RayJob", (*HEAD, "template", "spec", "volumes", 0), "name", None),
        ("CronJob", ("spec",), "schedule", None),
        ("CronJob", (*CRON_POD, "containers", 0, "volumeMounts", 0), "mountPath", None),
        ("RoleBinding", (), "roleRef", None),
    ],
)
def test_document_with_one_error_is_refused(
    kind: str, path: tuple[str | int, ...], key: str, wrong: Any
) -> None:
    document = named(kind)
    if wrong is None:
        del at(document, path)[key]
    else:
        at(document, path)[key] = wrong
    assert any(key in fault for fault in find_errors(document))


def test_quantity_may_be_a_number_or_a_string() -> None:
    job = named("RayJob")
    limits = at(job, (*HEAD, "template", "spec", "containers", 0, "resources", "limits"))
    for good in (7, "7", "500m", "26Gi"):
        limits["cpu"] = good
        assert find_errors(job) == []
    for bad in (True, [7], 7.5, "7 cores"):
        limits["cpu"] = bad
        assert find_errors(job)


def test_schema_names_its_sources() -> None:
    sources = json.loads((Path(__file__).with_name("schema.json")).read_text())["source"]
    for source in sources.values():
        assert {"repository", "version", "licence"} <= set(source)
        assert source["licence"] == "Apache-2.0"


# The cluster of a night.


def test_all_versions_are_those_of_the_installed_ray() -> None:
    cluster = named("RayJob")["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    head, worker = (
        at(cluster, (*group, "template", "spec", "containers", 0, "image"))
        for group in (("headGroupSpec",), ("workerGroupSpecs", 0))
    )
    assert head.endswith(f"{version('visrec')}-ray{version('ray')}-py311")
    assert worker == f"{head}-gpu"
    # The tags of the build commands in the Dockerfile.
    for image in (head, worker):
        assert f"--tag {image} " in (DEPLOY / "Dockerfile").read_text()


def test_entrypoint_names_existing_files() -> None:
    python, *words = named("RayJob")["spec"]["entrypoint"].split()
    paths = [word for word in words if "/" in word]
    assert python == "python"
    assert [Path(path).parent.name for path in paths] == ["jobs", "configs"]
    assert [path for path in paths if not (CHECKOUT / path).is_file()] == []


def test_cluster_requires_a_token_and_does_not_expose_the_dashboard() -> None:
    cluster = named("RayJob")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]


def test_autoscaler_reads_the_groups_as_intended() -> None:
    custom_resource = {
        "metadata": {"name": "visrec", "namespace": "default"},
        "spec": named("RayJob")["spec"]["rayClusterSpec"],
    }
    config = _derive_autoscaling_config_from_ray_cr(custom_resource)
    head, gpu = (config["available_node_types"][name] for name in ("headgroup", "gpu"))
    # Jobs size themselves by the CPUs at the start, when there are no workers yet.
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (6, 0)
    assert (gpu["resources"]["CPU"], gpu["resources"]["GPU"]) == (7, 1)
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 4)
    assert config["idle_timeout_minutes"] == 5


def test_driver_has_a_cpu_that_tasks_do_not_get() -> None:
    head = at(named("RayJob"), HEAD)
    limits = at(head, ("template", "spec", "containers", 0, "resources", "limits"))
    assert int(head["rayStartParams"]["num-cpus"]) < int(limits["cpu"])


def test_shared_memory_holds_the_object_store() -> None:
    for pod in list(pods())[:2]:
        (container,) = pod["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        (volume,) = [v["emptyDir"] for v in pod["volumes"] if v["name"] == mount["name"]]
        assert volume["medium"] == "Memory"
        memory = float(parse_quantity(container["resources"]["limits"]["memory"]))
        store = memory * DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
        assert store < float(parse_quantity(volume["sizeLimit"])) < memory


def test_requests_are_limits() -> None:
    resources = [c["resources"] for pod in pods() for c in pod["containers"]]
    resources.append(named("RayJob")["spec"]["rayClusterSpec"]["autoscalerOptions"]["resources"])
    for each in resources:
        assert each["requests"] == each["limits"]
        assert {"cpu", "memory"} <= set(each["limits"])


def test_no_pod_runs_as_root_or_can_become_root() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_workers_are_spot_machines_with_their_own_account() -> None:
    head, worker, cron = pods()
    assert "SPOT" in worker["nodeSelector"].values()
    assert "SPOT" not in head["nodeSelector"].values()
    assert len({pod["serviceAccountName"] for pod in (head, worker, cron)}) == 3
    # KubeRay grants changes of the cluster to the head's account; workers get no token at all.
    assert worker["automountServiceAccountToken"] is False


# The schedule.

# Logs its arguments; answers each get with the next line of `answers`, and fails if that is "!".
KUBECTL = """
printf '%s\\n' "$*" >> calls
case "$1 $*" in
  get*" jobs "*) cat times ;;
  get*) answer=$(head -n 1 answers); sed -i 1d answers; echo "$answer"; [ "$answer" != "!" ] ;;
  patch*jsonpath*) cat entrypoint ;;
  patch*) echo patched ;;
  create*) cat > created ;;
esac
"""


def test_everything_that_pods_refer_to_exists() -> None:
    accounts = {d["metadata"]["name"] for d in DOCUMENTS if d["kind"] == "ServiceAccount"}
    assert {pod["serviceAccountName"] for pod in pods()} == accounts
    # The ConfigMap of the store is in the file; a command in a comment makes that of the night.
    text = (DEPLOY / "cronjob.yaml").read_text()
    made = dict(re.findall(r"kubectl create configmap (\S+) --from-file=(\S+)", text))
    assert all((CHECKOUT / path).is_file() for path in made.values())
    head, worker, cron = pods()
    for pod in (head, worker):
        sources = pod["containers"][0]["envFrom"]
        (store,) = [s["configMapRef"]["name"] for s in sources if "configMapRef" in s]
        assert store == named("ConfigMap")["metadata"]["name"]
        # The keys may be missing, if a role replaces them.
        assert [s["secretRef"]["optional"] for s in sources if "secretRef" in s] == [True]
    (volume,) = cron["volumes"]
    (mount,) = cron["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"]
    source = made[volume["configMap"]["name"]]
    assert f"{mount['mountPath']}/{Path(source).name}" in cron["containers"][0]["command"][-1]


def test_account_that_starts_a_night_may_do_nothing_else() -> None:
    binding, role = named("RoleBinding"), named("Role")
    cron = at(named("CronJob"), CRON_POD)
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [s["name"] for s in binding["subjects"]] == [cron["serviceAccountName"]]
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    ]


def test_night_ends_before_the_next_one_and_on_its_own_date() -> None:
    night, cron = named("RayJob")["spec"], named("CronJob")["spec"]
    longest = ATTEMPTS * night["activeDeadlineSeconds"]
    waits = cron["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    minute, hour, *days = cron["schedule"].split()
    start = int(hour) * 3600 + int(minute) * 60
    assert cron["concurrencyPolicy"] == "Forbid"
    assert (days, cron["timeZone"]) == (["*", "*", "*"], "Etc/UTC")
    assert longest < waits < 86400
    assert start + cron["startingDeadlineSeconds"] + longest < 86400


ENDED = "AppFailed Job entrypoint command failed with exit code"


@pytest.mark.parametrize(
    ("there", "answers", "code", "created"),
    [
        (False, ["", "Initializing", "Running", "Complete"], 0, 1),
        (True, ["Running", "!", "Complete"], 0, 0),
        (False, ["Running", "Failed", f"{ENDED} 1, last available logs", "", "Complete"], 0, 2),
        (False, 3 * ["Failed", "SubmissionFailed no answer", ""], 100, ATTEMPTS),
        (False, ["Failed", f"{ENDED} 3, last available logs"], 100, 1),
        (False, ["Failed", f"{ENDED} 2. No logs available."], 100, 1),
        (False, ["Failed", f"{ENDED} 4, last available logs"], 100, 1),
        (False, ["Failed", "DeadlineExceeded the RayJob took too long"], 100, 1),
        (False, ["Failed", f"{ENDED} 130, last available logs", "", "Complete"], 0, 2),
    ],
    ids=["done", "taken-over", "retried", "failed", "held-back", "refused", "not-published",
         "too-long", "stopped"],
)  # fmt: skip
def test_pod_starts_attempts_until_the_night_is_done_or_no_other_can_help(
    there: bool, answers: list[str], code: int, created: int, tmp_path: Path
) -> None:
    """Runs the script of the pod with a kubectl that answers from a list."""
    container = at(named("CronJob"), (*CRON_POD, "containers", 0))
    (tmp_path / "answers").write_text("\n".join([("rayjob/n" if there else ""), *answers, ""]))
    # A scheduled Job names its time; the controller may have made it after midnight.
    (tmp_path / "times").write_text("2026-11-22T01:00:00Z 2026-11-23T00:10:00Z")
    entrypoint = named("RayJob")["spec"]["entrypoint"]
    (tmp_path / "entrypoint").write_text(entrypoint)
    for name, body in (("kubectl", KUBECTL), ("sleep", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB": "visrec-1", "OWNER": "u-1"}
    done = subprocess.run(
        container["command"], cwd=tmp_path, env=environment, timeout=60, capture_output=True
    )
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.count("create --filename -") == created
    assert (tmp_path / "created").exists() != there
    if not there:
        assert (tmp_path / "created").read_text() == "patched\n"
        night = json.loads(calls.rpartition("--patch ")[2].partition(" --output")[0])
        assert night["spec"] == {"entrypoint": f"{entrypoint} --as_of 2026-11-22"}
        patch = night["metadata"]
        assert (patch["name"], patch["generateName"]) == (f"visrec-1-ray-{created}", None)
        night = {**named("RayJob"), "spec": {**named("RayJob")["spec"], **night["spec"]}}
        night["metadata"] |= {k: v for k, v in patch.items() if v is not None}
        del night["metadata"]["generateName"]
        assert find_errors(night) == []
        # Not the name of the Job: KubeRay gives the name of the night to a Job of its own.
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "visrec-1", "uid": "u-1"}
        assert patch["ownerReferences"] == [owner]
    # KubeRay's limit for names; that of a scheduled Job contains the minutes since 1970.
    assert len(f"{named('CronJob')['metadata']['name']}-{'9' * 10}-ray-{ATTEMPTS}") <= 47
    codes = at(named("CronJob"), ("spec", "jobTemplate", "spec", "podFailurePolicy", "rules", 0))
    assert codes == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [100]}}


@pytest.mark.parametrize(
    ("times", "date"),
    [
        ("2026-11-22T01:00:00Z 2026-11-22T01:00:03Z", "2026-11-22"),
        (" 2026-11-23T14:05:00Z", "2026-11-23"),  # made by hand, without an annotation
    ],
)
def test_date_of_a_night_is_set_once(times: str, date: str, tmp_path: Path) -> None:
    """All attempts of a RayJob have its entrypoint; a replaced pod finds the existing RayJob."""
    script = at(named("CronJob"), (*CRON_POD, "containers", 0, "command"))[-1]
    (tmp_path / "answers").write_text("\n\nComplete\n")
    (tmp_path / "times").write_text(times)
    (tmp_path / "entrypoint").write_text('python jobs/nightly.py --force_publish "half\\closed"')
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\n{KUBECTL}\n")
    (tmp_path / "kubectl").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB": "j", "OWNER": "u"}
    short = script.replace("sleep 30", ":")
    done = subprocess.run(["sh", "-euc", short], cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 0
    calls = (tmp_path / "calls").read_text()
    patch = json.loads(calls.rpartition("--patch ")[2].partition(" --output")[0])
    expected = f'python jobs/nightly.py --force_publish "half\\closed" --as_of {date}'
    assert patch["spec"]["entrypoint"] == expected
    assert "cronjob-scheduled-timestamp} {.metadata.creationTimestamp}" in calls
    assert "$(date" not in script  # never from the pod's clock


def test_night_started_by_hand_has_its_date_once() -> None:
    """Runs the command at the head of rayjob.yaml, up to kubectl."""
    text = (DEPLOY / "rayjob.yaml").read_text()
    (command,) = re.findall(r"^#   (sed .*) \\$", text, re.M)
    done = subprocess.run(["sh", "-euc", command], cwd=CHECKOUT, capture_output=True, check=True)
    entrypoint = yaml.safe_load(done.stdout)["spec"]["entrypoint"]
    today = datetime.now(UTC).date().isoformat()
    assert entrypoint == f"{named('RayJob')['spec']['entrypoint']} --as_of {today}"


def test_nothing_but_the_schedule_retries_a_night() -> None:
    assert named("RayJob")["spec"]["backoffLimit"] == 0
    job = named("CronJob")["spec"]["jobTemplate"]["spec"]
    assert job["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    assert job["backoffLimit"] <= 3


def test_message_of_ray_has_the_exit_code_where_the_schedule_looks_for_it() -> None:
    source = inspect.getsource(job_supervisor)
    assert re.search(
        r'"Job entrypoint command "\s+f"failed with exit code \{return_code\}[,.]', source
    )


# Secrets.

_SECRET = re.compile(r"AKIA[0-9A-Z]{12}|(key|secret|token|password)\w*\s*[:=]\s*\S{16,}", re.I)


def test_deploy_contains_no_secret() -> None:
    assert _SECRET.search("AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI/K7MDENG/bPxRfiCY")
    for path in sorted(DEPLOY.iterdir()):
        assert not _SECRET.search(path.read_text()), path.name
    assert not [document for document in DOCUMENTS if document["kind"] == "Secret"]
    # Environment variables have literal values only in the ConfigMap.
    values = [e for pod in pods() for c in pod["containers"] for e in c.get("env", [])]
    assert all(set(value) == {"name", "valueFrom"} for value in values)
    assert not [name for name in named("ConfigMap")["data"] if "KEY" in name or "TOKEN" in name]
