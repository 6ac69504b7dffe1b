"""An evaluation that is kept loses users: their metrics and their part of the report."""

from pathlib import Path

import pyarrow as pa
import pytest

from visrec.errors import InputError
from visrec.evaluation.examples import hash_user_id
from visrec.evaluation.forget import forget_users
from visrec.storage.store import Store

USER = '<section class="user">\n<h3>User <bdi>{}</bdi></h3></section>\n'


@pytest.fixture
def evaluation(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    users = pa.table(
        {"model": ["a", "a", "b", "b"], "user_id": ["u&1", "u2"] * 2, "auc": [0.5] * 4}
    )
    store.write_table("per_user.parquet", users)
    store.write("report.html", f"<p>{USER.format('u&amp;1')}{USER.format('u2')}</p>".encode())
    store.write_json("metrics.json", {"digests": {"a": "old", "b": "other"}, "models": {}})
    return store


def test_users_leave_metrics_and_report_and_models_have_their_present_digests(
    evaluation: Store,
) -> None:
    assert forget_users(evaluation, pa.array(["u&1", "u9"]), {"old": "new"}) == 2
    assert evaluation.read_table("per_user.parquet")["user_id"].to_pylist() == ["u2", "u2"]
    assert evaluation.read("report.html").decode() == f"<p>{USER.format('u2')}</p>"
    assert evaluation.read_json("metrics.json")["digests"] == {"a": "new", "b": "other"}
    assert forget_users(evaluation, pa.array(["u&1", "u9"]), {"old": "new"}) == 0


@pytest.mark.parametrize("key", ["old", "new", "other"])
def test_users_whose_ids_are_hashed_leave_the_report(evaluation: Store, key: str) -> None:
    """By the digest that the model had then, or has now, or that the metrics name."""
    sections = [USER.format(hash_user_id(user, key)) for user in ("u&1", "u2")]
    evaluation.write("report.html", "".join(sections).encode())
    forget_users(evaluation, pa.array(["u&1"]), {"old": "new"})
    assert evaluation.read("report.html").decode() == sections[1]


def test_report_that_names_a_user_elsewhere_is_removed(evaluation: Store) -> None:
    evaluation.write("report.html", b"<td><bdi>u2</bdi></td>")
    forget_users(evaluation, pa.array(["u2"]), {})
    assert not evaluation.exists("report.html")


def test_report_with_damaged_bytes_loses_the_user_and_keeps_them(evaluation: Store) -> None:
    evaluation.write("report.html", b"\xff" + USER.format("u2").encode() + b"\xfe")
    forget_users(evaluation, pa.array(["u2"]), {})
    assert evaluation.read("report.html") == b"\xff\xfe"


def test_damaged_table_is_refused_by_name(evaluation: Store) -> None:
    evaluation.write("per_user.parquet", evaluation.read("per_user.parquet")[:-9])
    with pytest.raises(InputError, match=r"per_user\.parquet is damaged: it is not Parquet"):
        forget_users(evaluation, pa.array(["u2"]), {})
