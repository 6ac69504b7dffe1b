"""Bad model files and ids do no harm, and keys are not seen (promises 11, 13 and 14).

What single files become is tested beside the model files.
"""

import io
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import make_complete_run, measured
from tests.models.test_artifact import (
    FILES,
    _artifact,
    _as_npz,
    _as_pickle,
    _as_torch_zip,
    _Payload,
    replace_file,
)
from tests.servers import SeaweedFS, free_ports
from tests.storage.test_store import every_request
from visrec.cli.job import JobConfig
from visrec.cli.parse import parse
from visrec.config import plain
from visrec.errors import InputError, VisrecError
from visrec.models.artifact import load_artifact, save_artifact
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.publication.list_tables import Layout, lists_file, lists_table
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos

# ---------------------------------------------------------------------------------- 11. model files


def _as_joblib(payload: _Payload) -> bytes:
    sink = io.BytesIO()
    joblib.dump({"weight": payload}, sink)
    return sink.getvalue()


def _as_python_type(payload: _Payload) -> bytes:
    """Parquet that asks for a type which older versions of pyarrow read by unpickling it."""
    marks = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(payload),
    }
    sink = pa.BufferOutputStream()
    schema = pa.schema([pa.field("item_id", pa.string(), metadata=marks)])
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(8)]}, schema), sink)
    return bytes(sink.getvalue())


DISGUISES = (_as_pickle, _as_torch_zip, _as_npz, _as_joblib, _as_python_type)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_file_of_a_model_runs_code(
    tmp_path: Path, disguise: Callable[[_Payload], bytes]
) -> None:
    trace = tmp_path / "trace"
    data = disguise(_Payload(trace))
    harmless = disguise is _as_python_type  # for ids it is a file of strings
    for name in FILES:
        store = Store.at(str(tmp_path / f"model-{name}"))
        save_artifact(_artifact(), store)
        replace_file(store, name, data)
        if harmless and name.endswith("ids.parquet"):
            load_artifact(store)
        else:
            # A model's own parser may say it in its own words, all of which are ValueErrors.
            with pytest.raises((InputError, ValueError)):
                load_artifact(store)
        assert not trace.exists(), name
    measured(11, bad_inputs=len(FILES), crashes=0, traces=int(trace.exists()))


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_table_runs_no_code(tmp_path: Path, disguise: Callable[[_Payload], bytes]) -> None:
    trace = tmp_path / "trace"
    store = Store.at(str(tmp_path))
    store.write("items.parquet", disguise(_Payload(trace)))
    if disguise is _as_python_type:
        assert store.read_table("items.parquet")["item_id"].to_pylist()[0] == "i0"
    else:
        with pytest.raises((VisrecError, ValueError)):
            store.read_table("items.parquet")
    assert not trace.exists()
    measured(11, bad_inputs=1, crashes=0, traces=int(trace.exists()))


def test_a_joblib_payload_would_run_where_joblib_reads_it(tmp_path: Path) -> None:
    joblib.load(io.BytesIO(_as_joblib(_Payload(tmp_path / "trace"))))
    assert (tmp_path / "trace").exists()


# --------------------------------------------------------------------------------- 13. secret keys

CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+key0123456789abcdefghijklm",
    "AWS_SESSION_TOKEN": "canary-token-0123456789",
    "HF_TOKEN": "hf_canary0123456789",
    "RAY_AUTH_TOKEN": "canary" * 10,
}
FLAGS: tuple[tuple[type[JobConfig], tuple[str, ...]], ...] = (
    (RecommendJob, ("--k", "0")),
    (RecommendJob, ("--k", "many")),
    (RecommendJob, ("--no_such_key", "1")),
    (RecommendJob, ("--gates.min_lists", "-1")),
    (RecommendJob, ("--force_publish", " ")),
    (TrainJob, ("--model.name", "oracle")),
    (TrainJob, ("--train.epochs", "0")),
    (EvaluateJob, ("--no_such_key", "1")),
)


def failures(place: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What fails with keys that no store accepts, in a store that is there and in none."""
    for name, request in every_request(Store.at(place)).items():
        yield f"{name} with wrong keys", request
    for name, request in every_request(Store.at(f"{place}-not/prefix")).items():
        yield f"{name} of another's bucket", request
    nowhere = Store("s3://bucket/x", f"http://127.0.0.1:{free_ports(1)[0]}")
    for name, request in every_request(nowhere).items():
        yield f"{name} of no server", request
    for kind, flags in FLAGS:
        yield " ".join(flags), lambda kind=kind, flags=flags: parse(kind, flags)
    yield "publish", lambda: make_complete_run(Store.at(place), "run")
    yield "point", lambda: publish_run(Store.at(place), "run")
    yield "run id", lambda: run_store(Store.at(place), "../up")
    yield "probe", Store.at(place).check_writable


@pytest.mark.s3
@pytest.mark.usefixtures("no_pauses")
def test_keys_are_in_no_message_config_or_file(
    s3: SeaweedFS,
    s3_env: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    forget_credentials()
    shown, count = [], 0
    for what, fails in failures(s3_env):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            fails()
        assert caught.value.__traceback__ is not None, what
        shown += traceback.format_exception(caught.value)
        shown += [repr(caught.value), repr(vars(caught.value))]
        count += 1
    assert count >= 30
    # What is written where the store takes it: here, and on the server by its own keys.
    local = Store.at(str(tmp_path))
    make_complete_run(local, "run")
    publish_run(local, "run")
    local.write_table("x.parquet", pa.table({"item_id": ["a"]}))
    for kind, flags in ((RecommendJob, ("--k", "7")), (TrainJob, ())):
        config = parse(kind, flags)
        local.write_json(f"{kind.__name__}.json", plain(config))
        shown += [repr(config), str(config)]
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    forget_credentials()
    remote = Store.at(f"{s3_env}/recommendations")
    make_complete_run(remote, "run")
    shown += [repr(local), repr(remote), repr(pickle.dumps(remote))]
    shown += [repr(remote.read(entry.name)) for entry in remote.list()]
    shown += [repr(path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    shown += [*capfd.readouterr(), caplog.text]
    seen = "\n".join(shown)
    hidden = [*CANARIES.values(), s3.secret_key]
    assert len(seen) > 10_000
    leaks = [name for name in hidden if name in seen]
    assert leaks == []
    measured(13, failures=count, canaries=len(hidden), leaks=len(leaks))


# ---------------------------------------------------------------------------- 14. ids steer nothing

IDS = [
    *("../up", "../../../../etc/passwd", "..", ".", "/", "//", "/etc/passwd", "~", "~root", "\\"),
    *("..\\up", "C:\\windows", "%2F", "%2e%2e%2f", "%00", "a%20b", "+", "a+b", "a b", " a", "a "),
    *("", " ", "\t", "\n", "a\nb", "\r\n", "\0", "a\0b", "\x1b[31mred", "\x7f", "\u202egpj.exe"),
    *("\u200b", "\ufeff", "é", "e\u0301", "ß", "İ", "绘画", "ｆｕｌｌ", "\U0001f3a8", "👩‍👩‍👧‍👦"),
    *("x" * 2048, "绘" * 700, "NaN", "null", "None", "true", "0", "-1", "1e309", "007", "s3://b/k"),
    *("_manifest.json", "_latest.json", "run=other", "part-00000.parquet", "a=1/b=2", ".hidden"),
    *("*", "?", "[a-z]", "a,b", 'quo"te', "it's", "$(reboot)", "`id`", "; rm -rf /", "{0}", "%s"),
]  # fmt: skip


def publish_ids(lists: Store, ids: list[str], layout: Layout) -> dict[str, list[str]]:
    """Publishes a list for each id, of the next two ids, and reads it back as a reader would."""
    count = len(ids)
    row_BK = (np.arange(count)[:, None] + [1, 2]) % count
    table = lists_table(
        pa.array(ids),
        pa.array(ids),
        row_BK,
        np.tile(np.array([2, 1], np.float32), (count, 1)),
        row_BK,
        np.zeros(count, bool),
        layout,
    )
    run = run_store(lists, layout)
    run.write("part-00000.parquet", lists_file(table))
    make_complete_run(lists, f"{layout}-2")
    publish_run(lists, f"{layout}-2")
    read: dict[str, list[str]] = {}
    for row in run.read_table("part-00000.parquet").to_pylist():
        entries = row["items"] if layout == "nested" else [row]
        read.setdefault(row["user_id"], []).extend(
            entry[key] for entry in entries for key in ("item_id", "because_item_id")
        )
    return read


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_ids_come_back_equal_and_name_nothing(store: Store, layout: Layout) -> None:
    assert len(set(IDS)) == len(IDS) >= 60
    plain_ids = [f"i{n}" for n in range(len(IDS))]
    odd, even = store / "odd", store / "plain"
    found = publish_ids(odd, IDS, layout)
    publish_ids(even, plain_ids, layout)
    assert list(found) == IDS
    for place, entries in enumerate(found.values()):
        first, second = (IDS[(place + step) % len(IDS)] for step in (1, 2))
        assert entries == [first, first, second, second]
    keys = [{entry.name for entry in place.list()} for place in (odd, even)]
    assert keys[0] == keys[1]
    assert {entry.name.partition("/")[0] for entry in store.list()} == {"odd", "plain"}
    if not store.is_s3:
        top = Path(store.root).parents[1]
        assert {name for name in os.listdir(top) if name != "some"} == set()
    measured(14, ids=len(IDS), ids_changed=0, new_prefixes=len(keys[0] - keys[1]))
