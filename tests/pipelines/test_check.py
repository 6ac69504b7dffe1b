"""What a check says of planted data, and what it refuses."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.features.sentences import TextConfig
from visrec.features.table import part_files, read_manifest
from visrec.pipelines.check import CheckJob, main
from visrec.pipelines.check_facts import read_text_catalogue
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store

COLUMNS = {"user_id": "customer_email", "item_id": "sku", "timestamp": "ordered_at"}
# Users with 1, 2 and 6 baskets; `gone` has no picture.
BASKETS = {"ann": ["a b"], "bob": ["a", "b gone"], "eve": ["a", "b", "c", "d", "e", "f"]}
PICTURES = [*"abcdef", "new-1", "new-2"]


def orders(baskets: dict[str, list[str]] = BASKETS) -> str:
    lines = ["order_no;customer_email;sku;ordered_at"]
    for user, items in baskets.items():
        for day, basket in enumerate(items, 1):
            lines += [f"9;{user};{item};2026-11-{day:02} 03:00:00+02:00" for item in basket.split()]
    return "\n".join([*lines, "9;;a;2026-11-01"]) + "\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop/images").mkdir(parents=True)
    for item in PICTURES:
        (tmp_path / f"shop/images/{item}.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "shop/images/readme.txt").write_text("x")
    with gzip.open(tmp_path / "shop/interactions.csv.gz", "wt") as file:
        file.write(orders())
    return tmp_path / "shop"


Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check(shop: Path) -> Check:
    def run(**fields: Any) -> dict[str, Any]:
        fields = {"interactions": InteractionsConfig(columns=COLUMNS), **fields}
        summary = Summary("check")
        main(CheckJob(workspace=str(shop), **fields), summary)
        assert json.loads(json.dumps(summary.to_dict()))["job"] == "check"
        assert "verdict" in summary.render()
        return summary.rows

    return run


def test_facts_are_those_of_the_planted_data(check: Check, shop: Path) -> None:
    rows = check()
    assert rows["interactions"] == (
        f"{shop}/interactions.csv.gz: CSV with semicolons, UTF-8, gzip; user_id is customer_email, "
        "item_id is sku, timestamp is ordered_at; timestamps: ISO 8601 with a time zone and ISO "
        "8601 without a time zone, read as UTC"
    )
    assert rows["rows"] == 12
    assert rows["rows left out"] == {"without a user_id": 1, "of items without a picture": 1}
    assert (rows["users"], rows["items"]) == (3, 7)
    assert rows["period"] == "2026-11-01 01:00 to 2026-11-06 01:00 UTC, 5 days"
    assert rows["users by baskets"] == {
        "with 1 basket": 1, "with 2 or more": 2, "with 5 or more": 1,
    }  # fmt: skip
    assert rows["pictures"] == f"8 at {shop}/images; not pictures: 1 .txt"
    assert rows["items without picture"] == {
        "items of the interactions": 1, "such as": ["gone"],
    }  # fmt: skip
    assert rows["pictures never taken"] == {"items": 2, "such as": ["new-1", "new-2"]}
    assert rows["held out"] == {
        "test users": 2, "test rows": 2, "validation users": 1, "validation rows": 1,
        "training rows": 7,
    }  # fmt: skip
    assert rows["verdict"] == "ready: a night can run"
    assert "(an estimate)" in rows["a night takes"]["about"]


def test_tables_are_compared_with_the_pictures(check: Check, shop: Path) -> None:
    (shop / "items.jsonl").write_text(
        "".join(f'{{"code": "{item}", "available": "y"}}\n' for item in "AbX")
    )
    (shop / "users.tsv").write_text("mail\nann\nzoe\n")
    rows = check(items_columns={"item_id": "code"}, users_columns={"user_id": "mail"})
    assert rows["rows without picture"]["items of the table"] == 2
    assert rows["rows without picture"]["hint"] == (
        "some would match without upper and lower case, as 'A' and 'a'"
    )
    assert rows["pictures without row"]["items"] == 7
    assert rows["available"] == "8 of 8 items with a picture"
    assert rows["users without rows"] == {"users of the table": 1, "such as": ["zoe"]}


def test_several_pictures_of_an_item_are_explained_and_read(check: Check, shop: Path) -> None:
    for picture in shop.glob("images/*.jpg"):
        picture.with_name(f"{picture.stem}_1.jpg").write_bytes(b"")
        picture.rename(picture.with_name(f"{picture.stem}_2.jpg"))
    with pytest.raises(InputError, match=r"--image_pattern '\{item_id\}_\{view\}'"):
        check()
    rows = check(image_pattern="{item_id}_{view}")
    assert rows["pictures"].startswith("16 of 8 items at")
    assert rows["rows left out"]["of items without a picture"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "interactions.parquet").touch(), "Found interactions.csv.gz and inter"),
        (lambda s: (s / "interactions.csv.gz").rename(s / "orders.csv.gz"), "only orders.csv.gz;"),
        (lambda s: [p.unlink() for p in s.glob("images/*.jpg")], "Found no picture"),
        (
            lambda s: [p.rename(p.with_name(f"0{p.name}")) for p in s.glob("images/*.jpg")],
            "None of the 7 items of the interactions has a picture; expected the same ids. The "
            "table of interactions has ids such as",
        ),
        (lambda s: (s / "items.csv").write_text("item_id\na\na\n"), "one row per item"),
        (lambda s: (s / "items.csv").write_text("sku\na\n"), "--items_columns '{item_id: sku}'"),
    ],
    ids=["two tables", "no table", "no pictures", "other ids", "repeated items", "items' columns"],
)
def test_data_that_a_job_would_refuse_is_refused_after_the_table(
    check: Check, shop: Path, change: Callable[[Path], object], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    change(shop)
    with pytest.raises(InputError) as caught:
        check()
    assert message in str(caught.value)
    assert "not ready" in capsys.readouterr().out
    problems = json.loads((shop / "summaries/check.json").read_text())["problems"]
    assert any(message in problem for problem in problems)


def test_remarks_tell_what_a_night_can_do_without(check: Check, shop: Path) -> None:
    text = orders({"ann": ["a"], "bob": ["gone"], "eve": ["gone"]}).splitlines()[:-1]
    (shop / "interactions.csv.gz").write_bytes(gzip.compress("\n".join(text).encode()))
    remarks = check()["remarks"]
    assert "2 of 3 rows are of items without a picture" in remarks
    assert "No user took two items with a picture" in remarks
    assert "No user has 2 baskets" in remarks


def test_id_that_looks_like_a_null_is_told(check: Check, shop: Path) -> None:
    """As str(None) and R write it; without quotes it is a null."""
    more = ['9;"None";a;2026-11-01', '9;"NA";a;2026-11-02', "9;nan;a;2026-11-02"]
    text = "\n".join(
        [*orders({**BASKETS, **{f"u{n}": ["a"] for n in range(9)}}).splitlines(), *more]
    )
    (shop / "interactions.csv.gz").write_bytes(gzip.compress(text.encode()))
    rows = check()
    assert "There is the user_id 'None' and 'NA', which looks like a null" in rows["remarks"]
    assert rows["rows left out"]["without a user_id"] == 2


@pytest.mark.parametrize(
    ("column", "word"), [("Financial Status", "paid"), ("status", "Cancelled")]
)
def test_cancelled_orders_among_the_interactions_are_told(
    check: Check, shop: Path, column: str, word: str
) -> None:
    head, *lines = orders().splitlines()
    text = "\n".join([f"{head};{column}", *(f"{line};{word}" for line in lines)])
    (shop / "interactions.csv.gz").write_bytes(gzip.compress(text.encode()))
    remarks = check()["remarks"]
    assert f"Cancelled and refunded orders ({column}) count as interactions" in remarks
    assert "visrec import retail" in remarks


def test_night_without_anything_to_train_on_takes_no_time_for_it(check: Check, shop: Path) -> None:
    text = orders({f"u{n}": ["a"] for n in range(9)}).splitlines()[:-1]
    (shop / "interactions.csv.gz").write_bytes(gzip.compress("\n".join(text).encode()))
    rows = check()
    assert "hybrid could not be trained" in rows["tonight serves"]
    assert rows["a night takes"]["train"] == "4 s (nothing to train on)"
    assert "evaluate" not in rows["a night takes"]
    text = orders({f"u{n}": [*"abcdef"] for n in range(9)}).splitlines()[:-1]
    (shop / "interactions.csv.gz").write_bytes(gzip.compress("\n".join(text).encode()))
    rows = check()
    assert "until it is known whether hybrid is better: 9 users" in rows["tonight serves"]
    assert rows["a night takes"]["train"] == "45 s (hybrid, though it does not serve)"


@pytest.mark.parametrize(
    ("times", "written", "fault"),
    [
        (["03/04/2026"], "not readable", "which may have the day first or the month first"),
        (["20261122"], "not readable", "which are dates written as numbers, YYYYMMDD"),
        (["9999-12-31"], "not readable", "values read as ISO 8601 without a time zone"),
        (["1700000000", "1700000000123"], "not readable", "expected one unit"),
    ],
)
def test_fault_of_times_does_not_contradict_how_they_are_described(
    check: Check, shop: Path, capsys: pytest.CaptureFixture[str], times: list[str], written: str,
    fault: str,
) -> None:  # fmt: skip
    lines = [f"{user},{item},{time}" for user in "uvw" for item in "ab" for time in times]
    (shop / "interactions.csv.gz").write_bytes(
        gzip.compress("\n".join(["user_id,item_id,timestamp", *lines]).encode())
    )
    with pytest.raises(InputError, match=fault):
        check(interactions=InteractionsConfig())
    assert f"timestamps: {written}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("times", "remark"),
    [
        ([20_000], "All timestamps, read as seconds since 1970, lie in 1970 (1970-01-01 05:33 to"),
        ([1_700_000_000_000, 4_000_000_000_000], "3 rows are dated after today, 20"),
        ([1_700_000_000_000, 4_000_000_000_000], "left out. Timestamps are read as milliseconds"),
    ],
)
def test_remark_on_times_names_their_unit(
    check: Check, shop: Path, times: list[int], remark: str
) -> None:
    lines = [f"{user},{i},{times[n % len(times)]}" for user in "uvw" for n, i in enumerate("ab")]
    (shop / "interactions.csv.gz").write_bytes(
        gzip.compress("\n".join(["user_id,item_id,timestamp", *lines]).encode())
    )
    assert remark in check(interactions=InteractionsConfig())["remarks"]


@pytest.fixture
def items_with_titles(shop: Path) -> Path:
    lines = [f"{item},{'' if item == 'f' else f'Title of {item}'}" for item in "abcdef"]
    (shop / "items.csv").write_text("\n".join(["item_id,title", *lines]))
    return shop


def test_workspace_of_texts_alone_is_ready(check: Check, items_with_titles: Path) -> None:
    shutil.rmtree(items_with_titles / "images")
    keys = {"text": TextConfig(model="m"), "item_features": "text"}
    rows = check(**keys)
    assert rows["verdict"] == "ready: a night can run"
    assert rows["texts"] == "5, of which 0 embedded"
    assert "pictures" not in rows
    assert rows["items without text"] == {
        "items of the interactions": 2, "such as": ["gone", "f"],
    }  # fmt: skip
    with pytest.raises(InputError, match="Found no picture at"):
        check(**keys, images=str(items_with_titles / "photos"))
    with pytest.raises(InputError, match="Found no picture at"):
        check(text=TextConfig(model="m"))
    (items_with_titles / "items.csv").write_text("item_id,title\na,\n")
    with pytest.raises(InputError, match=r"None of the 1 items of .* has a title or a description"):
        check(**keys)


def test_items_without_a_text_are_counted_beside_the_pictures(
    check: Check, items_with_titles: Path
) -> None:
    rows = check(text=TextConfig(model="m"), item_features="both")
    assert rows["verdict"] == "ready: a night can run"
    assert rows["pictures"].startswith("8 at")
    assert rows["items without a text"] == {"items": 3, "such as": ["f", "new-1", "new-2"]}
    with pytest.raises(InputError, match=rf"{items_with_titles}/text_features"):
        check(item_features="both")  # nothing embeds the texts


def test_features_that_are_not_imported_are_named_in_place_of_pictures(
    check: Check, shop: Path
) -> None:
    for picture in shop.glob("images/*.jpg"):
        picture.unlink()
    (shop / "features.parquet").touch()
    with pytest.raises(InputError, match=r"visrec import-features --workspace .* --backbone NAME"):
        check()


def test_table_with_a_role_is_not_proposed_as_interactions(check: Check, shop: Path) -> None:
    (shop / "interactions.csv.gz").rename(shop / "orders.csv.gz")
    for name in ("items.csv", "users.csv", "blocked.csv"):
        (shop / name).write_text("item_id,user_id\na,ann\n")
    with pytest.raises(InputError, match=r"only orders.csv.gz; .*path .*/orders.csv.gz"):
        check()


def test_misspelt_workspace_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Found no folder .*shpo, or nothing in it"):
        main(CheckJob(workspace=str(tmp_path / "shpo")), Summary("check"))
    assert not list(tmp_path.iterdir())


def test_faults_of_a_workspace_that_cannot_be_written_are_told(
    check: Check, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "summaries").touch()  # where a directory would have to be
    with pytest.raises(InputError, match="lacks the columns"):
        check(interactions=InteractionsConfig())
    shown = capsys.readouterr()
    assert "The summary is not in the workspace. Could not write" in shown.out + shown.err


def test_parts_that_no_manifest_names_are_not_counted(featured: Path, tmp_path: Path) -> None:
    shutil.copytree(featured / "features", tmp_path / "features")
    store = Store.at(str(tmp_path / "features"))
    ids = read_text_catalogue(None, store).ids
    assert len(ids) == read_manifest(store).rows
    part = tmp_path / "features" / part_files(store)[0]
    shutil.copy(part, part.with_name(part.name.replace("part-", "part-0")))  # of a killed import
    assert len(part_files(store)) > len(read_manifest(store).files)
    assert read_text_catalogue(None, store).ids.equals(ids)
