"""Which interactions count: rating, cutoff, and the digest of what was read."""

import json
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.config import plain
from visrec.errors import InputError
from visrec.interactions.activity import moment_after
from visrec.interactions.read import read_log
from visrec.sources.interactions import (
    InteractionsConfig,
    digest_interactions,
    read_all,
    read_disliked,
    read_interactions,
)
from visrec.storage import json_files

DAY = 86_400
MIDNIGHT = int(datetime(2021, 3, 2, tzinfo=UTC).timestamp())
ALL = InteractionsConfig()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Five interactions around midnight with different ratings; the item id says when."""
    rows = {
        "day before": (-DAY, 5.0),
        "last second": (-1, 4.0),
        "midnight": (0, 3.0),
        "three": (3 * 3_600, 2.0),
        "day after": (DAY, None),
    }
    table = pa.table(
        {
            "user_id": ["u"] * len(rows),
            "item_id": list(rows),
            "timestamp": [MIDNIGHT + seconds for seconds, _ in rows.values()],
            "rating": [rating for _, rating in rows.values()],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    return str(tmp_path / "log.parquet")


def items(config: InteractionsConfig, uri: str) -> list[str]:
    return [
        item for batch in read_interactions(config, uri) for item in batch["item_id"].to_pylist()
    ]


def test_all_rows_count_by_default(uri: str) -> None:
    assert items(ALL, uri) == ["day before", "last second", "midnight", "three", "day after"]


def test_rows_below_min_rating_do_not_count(uri: str) -> None:
    assert items(replace(ALL, min_rating=4.0), uri) == ["day before", "last second"]
    assert items(replace(ALL, min_rating=4.1), uri) == ["day before"]
    # A row without a rating does not reach any min_rating.
    assert "day after" not in items(replace(ALL, min_rating=0.0), uri)


def test_disliked_rows_are_those_that_do_not_count(uri: str) -> None:
    def disliked(config: InteractionsConfig) -> list[str]:
        batches = read_disliked(config, read_all(config, uri))
        return [item for batch in batches for item in batch["item_id"].to_pylist()]

    assert disliked(ALL) == []
    assert disliked(replace(ALL, min_rating=4.0)) == ["midnight", "three", "day after"]
    assert disliked(replace(ALL, min_rating=4.0, as_of="2021-03-02T01:00")) == ["midnight"]


def test_another_min_rating_than_in_training_is_refused() -> None:
    replace(ALL, min_rating=4.0).require_min_rating(4.0, "the model m")
    with pytest.raises(InputError, match=r"min_rating none, and 3\.5 for the model m; expected"):
        ALL.require_min_rating(3.5, "the model m")


@pytest.mark.parametrize(
    ("as_of", "last"),
    [
        ("2021-03-02", "last second"),
        ("2021-03-02T00:00:01", "midnight"),
        ("2021-03-02 03:00", "midnight"),
        ("2021-03-02T03:00:01Z", "three"),
        ("2021-03-02T01:00+01:00", "last second"),
        ("2021-03-01T20:00:01-04:00", "midnight"),
        ("2026-11-01", "day after"),
    ],
)
def test_only_rows_before_the_cutoff_count(uri: str, as_of: str, last: str) -> None:
    assert items(replace(ALL, as_of=as_of), uri)[-1] == last


def test_row_of_a_later_day_than_today_is_left_out_and_counted(tmp_path: Path) -> None:
    config, now = InteractionsConfig(), datetime.now(UTC).timestamp()
    end = config.end_timestamp
    assert end % DAY == 0
    assert end - DAY <= now < end + 60  # the day may have ended meanwhile
    rows = [("u", "a", end - DAY), ("u", "b", end - 1), ("u", "c", end), ("v", "c", end + 10**9)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp", *(f"{u},{i},{t}" for u, i, t in rows)]))
    assert items(config, str(path)) == ["a", "b"]
    log = read_log(config, str(path), pa.array(["a", "b", "c"]))
    assert log.user_ids.to_pylist() == ["u"]
    assert log.read_report.left_out == {"dated after today": 2}
    assert moment_after(log.time_R) == end


def test_digest_changes_when_a_row_of_the_future_begins_to_count(tmp_path: Path) -> None:
    today, tomorrow = InteractionsConfig(), InteractionsConfig()
    vars(tomorrow)["end_timestamp"] = today.end_timestamp + DAY
    rows = [("u", "a", today.end_timestamp - 1), ("u", "b", today.end_timestamp)]
    log = [{"user_id": u, "item_id": i, "timestamp": t} for u, i, t in rows]
    uri = json_lines(tmp_path / "log.jsonl", log)
    assert digest_interactions(today, uri) != digest_interactions(tomorrow, uri)
    uri = json_lines(tmp_path / "log.jsonl", log[:1])
    assert digest_interactions(today, uri) == digest_interactions(tomorrow, uri)


def test_processes_of_a_job_agree_on_the_last_row_that_counts() -> None:
    config = InteractionsConfig()
    yesterday = config.end_timestamp - DAY
    vars(config)["end_timestamp"] = yesterday  # the job began before midnight
    assert pickle.loads(pickle.dumps(config)).end_timestamp == yesterday  # noqa: S301
    assert "end_timestamp" not in plain(config)
    assert replace(config, as_of="2021-03-02").end_timestamp == MIDNIGHT


def test_min_rating_and_cutoff_combine(uri: str) -> None:
    config = InteractionsConfig(min_rating=4.0, as_of="2021-03-01T12:00")
    assert items(config, uri) == ["day before"]


def test_early_cutoff_leaves_no_rows(uri: str) -> None:
    assert items(replace(ALL, as_of="1999-01-01"), uri) == []


@pytest.mark.parametrize("as_of", ["yesterday", "2021-13-01", "", "01/03/2021"])
def test_invalid_date_is_refused_by_the_config(as_of: str) -> None:
    with pytest.raises(InputError) as caught:
        InteractionsConfig(as_of=as_of)
    assert f"Found --interactions.as_of {as_of!r}; expected an ISO date" in str(caught.value)


def test_min_rating_without_a_rating_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,1\n")
    assert items(ALL, str(path)) == ["a"]
    with pytest.raises(InputError) as caught:
        items(replace(ALL, min_rating=4.0), str(path))
    assert f"Found no rating column in {path} (--interactions.path); --" in str(caught.value)


def json_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_ratings_of_json_lines_may_begin_in_a_later_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_BLOCK_BYTES", 1_000)
    rows = [{"user_id": "u", "item_id": f"i{n}", "timestamp": n} for n in range(200)]
    rows[150]["rating"] = 5
    config = InteractionsConfig(min_rating=4.0)
    assert items(config, json_lines(tmp_path / "log.jsonl", rows)) == ["i150"]


def test_digest_with_a_cutoff_is_the_same_once_later_rows_have_another_column(
    tmp_path: Path,
) -> None:
    rows = [{"user_id": "u", "item_id": f"i{n}", "timestamp": n} for n in range(300)]
    config, path = InteractionsConfig(as_of="1970-01-01T00:05"), tmp_path / "log.jsonl"
    before = digest_interactions(config, json_lines(path, rows))
    later = {"user_id": "u", "item_id": "i", "timestamp": 400, "rating": 2}
    assert digest_interactions(config, json_lines(path, [*rows, later])) == before
    rows[200]["rating"] = 2
    assert digest_interactions(config, json_lines(path, rows)) != before


def test_digest_with_a_cutoff_covers_earlier_rows_only(tmp_path: Path) -> None:
    """Later rows and other row groups do not change it; a change of an earlier row does."""
    rows = {"user_id": ["u", "v", "w"], "item_id": ["i", "j", "k"], "timestamp": [1, 2, 3]}
    rated = {**rows, "rating": [1.0, None, 3.0]}

    def digest(rows: dict[str, list[Any]], seconds: int | None, group: int = 100) -> str:
        path = tmp_path / "log.parquet"
        pq.write_table(pa.table(rows), path, row_group_size=group)
        as_of = None if seconds is None else f"1970-01-01T00:00:0{seconds}"
        return digest_interactions(InteractionsConfig(as_of=as_of, max_incomplete=1), str(path))

    first = digest({name: values[:2] for name, values in rows.items()}, 3)
    assert digest(rows, 3) == digest(rows, 3, group=1) == first
    assert digest(rows, 4) != first
    assert digest({**rows, "item_id": ["i", "J", "k"]}, 3) != first
    assert digest({**rows, "user_id": ["u", "v", "W"]}, 3) == first
    assert digest(rated, 3) not in (first, digest({**rated, "rating": [1.0, 2.0, 3.0]}, 3))
    assert digest({**rows, "user_id": ["ui", "v", "w"], "item_id": ["", "j", "k"]}, 3) != first
    # The digest depends on column names, and no value can run into the next one.
    weighted = {**rows, "weight": rated["rating"]}
    assert digest(weighted, 3) != digest(rated, 3)
    odd = [["a\x1fb", "c"], ["a", "b\x1fc"], ["1:a", ""], ["-", "-"], ["\x1e", "\x00"]]
    tables = [{"user_id": [u], "item_id": [i], "timestamp": [1]} for u, i in odd]
    assert len({digest(table, 3) for table in tables}) == len(odd)
    uncut = digest(rows, None)
    assert digest({name: [*values, values[0]] for name, values in rows.items()}, None) != uncut
