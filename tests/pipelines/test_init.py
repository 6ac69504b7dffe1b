"""What `visrec init` proposes for planted data, and that every later command understands it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.integration.workspace import undocumented_rows
from visrec.cli.parse import parse_in_workspace
from visrec.cli.summary import Summary
from visrec.cli.workspace_keys import WORKSPACE_FILE
from visrec.errors import InputError, StorageError
from visrec.pipelines import check, init
from visrec.pipelines.check import CheckJob
from visrec.pipelines.init import InitJob
from visrec.pipelines.night_command import visrec_command
from visrec.retrieval.rules import RulesConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import local
from visrec.storage.store import Store
from visrec.storage.workspace_tables import missing_table

COLUMNS = {"user_id": "customer_email", "item_id": "sku", "timestamp": "ordered_at"}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A shop's own files: an order export with its own names, two photos an item."""
    workspace = tmp_path / "shop"
    (workspace / "photos").mkdir(parents=True)
    for item in "abcdef":
        for view in "12":
            (workspace / f"photos/{item}_{view}.jpg").write_bytes(b"\xff\xd8\xff")
    lines = ["order_no,customer_email,sku,ordered_at"]
    for day, item in enumerate("abcdef", 1):
        lines += [f"{day},{user},{item},2026-11-{day:02}" for user in ("ann", "bob")]
    (workspace / "orders.csv").write_text("\n".join(lines))
    return workspace


def run_init(workspace: Path, **keys: object) -> dict[str, object]:
    summary = Summary("init")
    init.main(InitJob(workspace=str(workspace), **keys), summary)  # type: ignore[arg-type]
    return summary.rows


def kept(workspace: Path) -> object:
    return yaml.safe_load((workspace / WORKSPACE_FILE).read_text())


def run_check(workspace: Path, *flags: str) -> dict[str, object]:
    summary = Summary("check")
    check.main(parse_in_workspace(CheckJob, ["--workspace", str(workspace), *flags]), summary)
    return summary.rows


def test_own_files_need_no_key_after_init(shop: Path) -> None:
    rows = run_init(shop)
    assert rows["proposed"] == "interactions.path, interactions.columns, images, image_pattern"
    assert kept(shop) == {
        "images": f"{shop}/photos",
        "image_pattern": "{item_id}_{view}",
        "text": None,
        "interactions": {"path": f"{shop}/orders.csv", "columns": COLUMNS},
        "rules": None,
        "publish": None,
    }
    text = (shop / WORKSPACE_FILE).read_text()
    assert "# 'a_1' is then a picture of 'a'" in text
    assert "# the table has order_no, customer_email, sku, ordered_at" in text
    facts = run_check(shop)
    assert facts["verdict"] == "ready: a night can run"
    assert str(facts["pictures"]).startswith("12 of 6 items")
    assert facts["command"] == f"visrec nightly --workspace {shop} --local"


def test_given_keys_are_kept_and_paths_are_absolute(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    orders = InteractionsConfig(path="shop/orders.csv", min_rating=2.0)
    pattern = "{view}_{item_id}"
    run_init(tmp_path / "new", interactions=orders, images="shop/photos", image_pattern=pattern)
    found = kept(tmp_path / "new")
    assert isinstance(found, dict)
    assert found["images"] == f"{shop}/photos"
    assert found["image_pattern"] == pattern
    assert found["interactions"] == {
        "path": f"{shop}/orders.csv", "columns": COLUMNS, "min_rating": 2.0,
    }  # fmt: skip


def test_home_directory_is_expanded_in_paths_that_are_kept(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(shop))
    orders = InteractionsConfig(path=f"file:{shop}/orders.csv")
    run_init(tmp_path / "new", interactions=orders, images="~/photos")
    found = kept(tmp_path / "new")
    assert isinstance(found, dict)
    assert found["images"] == f"{shop}/photos"
    assert found["interactions"]["path"] == f"{shop}/orders.csv"


def test_column_without_a_guess_is_left_to_be_filled_in(shop: Path) -> None:
    (shop / "orders.csv").rename(shop / "interactions.csv")
    text = (shop / "interactions.csv").read_text()
    (shop / "interactions.csv").write_text(text.replace("ordered_at", "c4", 1))
    assert run_init(shop)["to be filled in"] == "interactions.columns (COLUMN)"
    with pytest.raises(InputError, match=r"timestamp: COLUMN.*is set in .*visrec.yaml|COLUMN"):
        run_check(shop)


def test_pattern_is_proposed_where_a_few_items_have_several_pictures(shop: Path) -> None:
    for item in "bcdef":  # their only picture has the item's own name
        (shop / f"photos/{item}_2.jpg").unlink()
        (shop / f"photos/{item}_1.jpg").rename(shop / f"photos/{item}.jpg")
    run_init(shop)
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["image_pattern"] == "{item_id}_{view}"
    facts = run_check(shop)
    assert str(facts["pictures"]).startswith("7 of 6 items")


def test_pattern_that_would_split_the_name_of_an_item_is_not_proposed(shop: Path) -> None:
    text = (shop / "orders.csv").read_text()
    (shop / "orders.csv").write_text(text.replace(",f,", ",a_1,"))  # an item like a view of a
    run_init(shop)
    assert "image_pattern" not in str(kept(shop))


@pytest.mark.parametrize("views", ["12", "1"])
def test_pattern_is_proposed_where_most_pictures_are_of_items_that_nobody_has_taken(
    shop: Path, views: str
) -> None:
    for item in [f"new{n}" for n in range(20)]:
        for view in views:
            (shop / f"photos/{item}_{view}.jpg").write_bytes(b"\xff\xd8\xff")
    run_init(shop)
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["image_pattern"] == "{item_id}_{view}"


def test_pattern_is_proposed_where_pictures_of_most_taken_items_are_gone(shop: Path) -> None:
    for picture in shop.glob("photos/[b-f]_*.jpg"):
        picture.rename(picture.with_name(f"new{picture.name}"))
    run_init(shop)
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["image_pattern"] == "{item_id}_{view}"


def test_pattern_is_not_proposed_for_a_new_item_whose_name_continues_another_one(
    shop: Path,
) -> None:
    for item in "abcdef":
        (shop / f"photos/{item}_1.jpg").unlink()
        (shop / f"photos/{item}_2.jpg").rename(shop / f"photos/{item}.jpg")
    for item in ["a_9", "x", "y"]:
        (shop / f"photos/{item}.jpg").write_bytes(b"\xff\xd8\xff")
    run_init(shop)
    assert "image_pattern" not in str(kept(shop))


@pytest.mark.parametrize("name", ["items", "users"])
def test_folder_of_pictures_named_like_an_optional_table_is_no_table(shop: Path, name: str) -> None:
    (shop / "photos").rename(shop / name)
    assert run_init(shop)["proposed"] == (
        "interactions.path, interactions.columns, images, image_pattern"
    )
    assert run_check(shop)["verdict"] == "ready: a night can run"


def test_orders_whose_name_only_contains_a_word_of_block_lists_are_interactions(shop: Path) -> None:
    (shop / "orders.csv").rename(shop / "orders_excluding_vat.csv")
    run_init(shop)
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["interactions"]["path"] == f"{shop}/orders_excluding_vat.csv"
    assert found["rules"] is None


def test_column_that_says_what_can_be_had_is_proposed(shop: Path) -> None:
    (shop / "items.csv").write_text("sku,in_stock,qty_on_hand\na,true,3\nb,false,0\n")
    run_init(shop)
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["items_columns"] == {"item_id": "sku", "available": "in_stock"}
    assert str(run_check(shop)["available"]).startswith("5 of 6 items")  # b is not


def test_column_of_availability_stays_where_the_items_have_to_be_filled_in(shop: Path) -> None:
    (shop / "items.csv").write_text("c1,in_stock\na,true\nb,false\n")
    rows = run_init(shop)
    assert rows["to be filled in"] == "items_columns (COLUMN)"
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["items_columns"] == {"item_id": "COLUMN", "available": "in_stock"}
    text = (shop / WORKSPACE_FILE).read_text()
    assert "# the table has c1, in_stock; in_stock says which items are available" in text


def test_pattern_of_views_is_proposed_where_a_time_has_to_be_filled_in(shop: Path) -> None:
    text = (shop / "orders.csv").read_text()
    (shop / "interactions.csv").write_text(text.replace("ordered_at", "c4", 1))
    (shop / "orders.csv").unlink()
    assert run_init(shop)["proposed"] == "interactions.columns, images, image_pattern"


def test_table_that_cannot_be_read_leaves_the_other_proposals(shop: Path) -> None:
    (shop / "items.csv").write_bytes(b"PK\x03\x04 a spreadsheet")
    rows = run_init(shop)
    assert rows["proposed"] == "interactions.path, interactions.columns, images, image_pattern"


def test_column_with_other_values_is_not_proposed(shop: Path) -> None:
    (shop / "items.csv").write_text("item_id,active\na,since May\nb,soon\n")
    run_init(shop)
    assert "items_columns" not in str(kept(shop))


@pytest.mark.parametrize("name", ["blocked.csv", "do-not-recommend.csv", "Sperrliste_2026.csv"])
def test_block_list_is_proposed_with_its_items_and_users(shop: Path, name: str) -> None:
    (shop / name).write_text("sku,customer_email,ordered_at\na,,\nb,ann,\nz,zoe,\n")
    rows = run_init(shop)
    assert str(rows["proposed"]).startswith("interactions.path, rules.blocked, ")
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["rules"] == {
        "blocked": f"{shop}/{name}",
        "blocked_columns": {"item_id": "sku", "user_id": "customer_email"},
    }
    facts = run_check(shop)
    assert str(facts["block list"]).endswith("item_id is sku, user_id is customer_email")
    assert facts["rows of the block list"] == {"for everybody": 1, "for one user": 2}
    assert facts["blocked users unknown"] == {"users": 1, "such as": ["zoe"]}
    assert facts["blocked without picture"] == {"items": 1, "such as": ["z"]}
    assert facts["in stock, not blocked"] == "5 of 6 items"


def test_rows_of_check_are_those_of_the_schemas(shop: Path) -> None:
    (shop / "blocked.csv").write_text("sku,user_id\na,ann\nz,zoe\n")
    (shop / "items.csv").write_text("item_id,available\na,no\n")
    (shop / "users.csv").write_text("user_id\nann\n")
    run_init(shop)
    summary = Summary("check")
    check.main(parse_in_workspace(CheckJob, ["--workspace", str(shop)]), summary)
    assert "blocked without picture" in summary.rows
    assert undocumented_rows(summary) == set()


def test_block_list_elsewhere_is_kept_and_its_columns_are_proposed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "never.csv").write_text("sku\na\n")
    monkeypatch.chdir(tmp_path)
    run_init(shop, rules=RulesConfig(blocked="never.csv"))
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["rules"] == {
        "blocked": f"{tmp_path}/never.csv", "blocked_columns": {"item_id": "sku"},
    }  # fmt: skip


def test_two_block_lists_and_one_of_users_alone_are_not_proposed(shop: Path) -> None:
    (shop / "blocked_users.csv").write_text("user_id\nann\n")
    (shop / "blocked.csv").write_text("sku\na\n")
    (shop / "excluded.csv").write_text("sku\na\n")
    run_init(shop)
    assert "'blocked'" not in str(kept(shop))


def test_check_refuses_what_the_rules_of_a_night_would(shop: Path) -> None:
    run_init(shop)
    with pytest.raises(
        InputError, match=r"Found --rules.min_stock 1 and no items table with a column st"
    ):
        run_check(shop, "--rules.min_stock", "1")
    with pytest.raises(InputError, match=r"--rules.blocked"):
        run_check(shop, "--rules.blocked", str(shop / "gone.csv"))


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"interactions": InteractionsConfig(path="empty.csv")}, "interactions.path"),
        ({"images": "nowhere"}, "images"),
        ({"images": "bare"}, "images"),
        ({"items": "nothing.csv"}, "items"),
        ({"rules": RulesConfig(blocked="nothing.csv")}, "rules.blocked"),
    ],
)
def test_data_that_are_not_there_are_refused(
    shop: Path, keys: dict[str, object], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    (shop / "empty.csv").touch()
    (shop / "bare").mkdir()
    with pytest.raises(InputError, match=rf"--{key}"):
        run_init(shop, **keys)
    assert not (shop / WORKSPACE_FILE).exists()


def test_names_of_items_and_users_tables_are_proposed(shop: Path) -> None:
    (shop / "items.csv").write_text("sku,title\na,A\n")
    (shop / "users.jsonl").write_text('{"customer_id": "ann"}\n')
    run_init(shop)
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["items_columns"] == {"item_id": "sku"}
    assert found["users_columns"] == {"user_id": "customer_id"}


def test_pictures_alone_are_enough(shop: Path) -> None:
    (shop / "orders.csv").unlink()
    assert run_init(shop)["proposed"] == "images, image_pattern"


def test_table_of_pictures_beside_the_other_tables_is_proposed(shop: Path) -> None:
    pictures = pa.table({"item_id": [*"abcdef"], "image": [b"\xff\xd8\xff"] * 6})
    pq.write_table(pictures, shop / "images.parquet")
    run_init(shop)
    found = kept(shop)
    assert isinstance(found, dict)
    assert found["images"] == f"{shop}/images.parquet"
    assert str(run_check(shop)["pictures"]).startswith("6 at ")


def test_folder_that_may_not_be_read_hides_none_of_the_others(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "private").mkdir()
    really = local._scan

    def scan(folder: str) -> object:
        if folder.endswith("private"):
            raise StorageError("permission denied")
        return really(folder)

    monkeypatch.setattr(local, "_scan", scan)
    rows = run_init(shop)
    assert rows["proposed"] == "interactions.path, interactions.columns, images, image_pattern"
    with pytest.raises(
        InputError, match=r"Found no interactions in .*, only orders\.csv; expected"
    ):
        raise missing_table(Store.at(str(shop)), "interactions", "interactions.path")


def test_second_init_and_an_empty_workspace_are_refused(shop: Path, tmp_path: Path) -> None:
    run_init(shop)
    with pytest.raises(InputError, match=r"Found .*visrec.yaml already"):
        run_init(shop)
    with pytest.raises(InputError, match=r"Found nothing at .*shpo; expected a workspace with pic"):
        run_init(tmp_path / "shpo")
    assert not (tmp_path / "shpo").exists()


def test_check_finds_all_faults_at_once_and_goes_on_with_proposals(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "orders.csv").rename(shop / "interactions.csv")
    (shop / "photos").rename(shop / "images")
    (shop / "items.csv").write_text("item_id\na\na\n")
    with pytest.raises(InputError) as caught:
        run_check(shop)
    faults = str(caught.value)
    assert faults.startswith("3 faults. (1) ")
    assert "lacks the columns user_id, item_id" in faults
    assert "The data need --image_pattern '{item_id}_{view}': 'a_1' is then a picture" in faults
    assert "expected one row per item" in faults
    shown = capsys.readouterr().out
    assert "users by baskets       2 with 2 or more" in shown
    assert "visrec nightly" not in shown  # it would be refused
    problems = json.loads((shop / "summaries/check.json").read_text())["problems"]
    assert len(problems) == 3


def test_proposal_stands_in_the_fault_that_it_solves(shop: Path) -> None:
    (shop / "prices.csv").write_text("sku,price\na,3\n")
    with pytest.raises(InputError) as caught:
        run_check(shop)
    faults = str(caught.value)
    assert faults.startswith("4 faults. (1) Found no picture at ")
    assert f"Change --images. Proposed: --images {shop}/photos. (2)" in faults
    assert f"PATH. Proposed: --interactions.path {shop}/orders.csv. (3)" in faults


def test_key_that_a_night_can_do_without_is_a_remark_and_no_fault(shop: Path) -> None:
    run_init(shop)
    (shop / "blocked.csv").write_text("sku\na\n")
    (shop / "items.csv").write_text("item_id,in_stock\na,no\n")
    rows = run_check(shop)
    assert rows["verdict"] == "ready: a night can run"
    assert rows["remarks"].endswith(
        f"Optional: --rules.blocked {shop}/blocked.csv (by its name, the items that no list may "
        "hold). Optional: --rules.blocked_columns '{item_id: sku}' (the table has sku). Optional: "
        "--items_columns '{available: in_stock}' (in_stock says which items are available)."
    )
    assert "--rules" not in str(rows["command"])


def test_column_of_stock_is_proposed_only_without_one_of_availability(shop: Path) -> None:
    (shop / "items.csv").write_text("item_id,available,inventory_level\na,yes,3\n")
    assert "items_columns" not in str(run_init(shop)["proposed"])
    (shop / WORKSPACE_FILE).unlink()
    (shop / "items.csv").write_text("item_id,inventory_level\na,3\n")
    run_init(shop)
    assert "# inventory_level says how many are in stock" in (shop / WORKSPACE_FILE).read_text()


def test_mapping_with_a_column_to_fill_in_is_one_fault(shop: Path) -> None:
    (shop / "items.csv").write_text("c1,title\na,A\n")
    run_init(shop)
    with pytest.raises(InputError, match=r"^Found --items_columns \{item_id: COLUMN\}; expected"):
        run_check(shop)


def test_check_says_that_init_solves_everything(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"`visrec init` writes keys with which a night can run"):
        run_check(shop)
    assert f"visrec nightly --workspace {shop} --local --" in capsys.readouterr().out
    run_init(shop)
    assert run_check(shop)["verdict"] == "ready: a night can run"


def test_command_of_a_night_has_the_keys_that_the_workspace_lacks(shop: Path) -> None:
    run_init(shop)
    rows = run_check(
        shop, "--image_pattern", "{item_id}_{view}.jpg", "--interactions.as_of", "2026-11-20"
    )
    assert rows["command"] == (
        f"visrec nightly --workspace {shop} --local --as_of 2026-11-20 --image_pattern "
        "'{item_id}_{view}.jpg'"
    )


def test_command_can_be_copied_into_a_shell() -> None:
    assert visrec_command("check", "my shop") == "visrec check 'my shop'"
    command = visrec_command(
        "nightly", "shop", "--local", items_columns={"item_id": "Article No"}, keep=3
    )
    assert command == (
        "visrec nightly --workspace shop --local --items_columns '{item_id: Article No}' --keep 3"
    )


@pytest.mark.parametrize("keys", [{}, {"interactions": "orders.csv"}])
def test_table_in_windows_1252_is_refused_with_how_to_convert_it(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    name = keys.get("interactions", "interactions.csv")
    lines = "Käufer;sku;ordered_at;Größe\na;b;2026-01-01;L\n"
    (tmp_path / name).write_bytes(lines.encode("cp1252"))
    given = {"interactions": InteractionsConfig(path=str(tmp_path / name))} if keys else {}
    with pytest.raises(InputError) as caught:
        run_init(tmp_path, **given)
    assert f"{tmp_path / name} (--interactions" in str(caught.value)
    assert "looks like Windows-1252, since line 1 is not UTF-8" in str(caught.value)
    assert f"`iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8.csv`" in str(caught.value)
    assert not (tmp_path / WORKSPACE_FILE).exists()
    with pytest.raises(InputError, match="looks like Windows-1252") as caught:
        run_check(tmp_path, "--interactions.path", str(tmp_path / name))
    assert "The data need" not in str(caught.value)
