"""Blanks are nulls: the same shop has the same lists from CSV and Parquet of several writers.

Each shop is planted with guests, blank block lists, blank artists, stars below what counts and rows
that lack something. The lists of all forms are compared, and held against what must be in them.
"""

import csv
import gzip
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import amount, measured
from tests.features import write_features
from tests.training import provenance
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models import MODELS
from visrec.models.artifact import Artifact, load_artifact, save_artifact
from visrec.models.base import Catalogue, Sizes
from visrec.models.provenance import InteractionsProvenance
from visrec.progress import Timer
from visrec.publication.run_spec import RunSpec
from visrec.recommend.inputs import ScoringInputs, prepare_scoring
from visrec.recommend.lists import ShardRecommender
from visrec.retrieval.rules import RulesConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import HELD_OUT
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos

ITEMS, DIM, K, SHARDS, LIKED = 40, 4, 12, 2, 4.0
START = int(datetime(2021, 10, 30, tzinfo=UTC).timestamp())  # the clocks go back the night after
QUIET = SimpleNamespace(add=SimpleNamespace(remote=lambda _: None))
Rows = list[dict[str, Any]]
BLANKS = ("", '""', " ", '"  "', "NULL", "\\N")


@dataclass
class Shop:
    """Tables as rows, None for what is not there."""

    seed: int
    guests: float = 0.1
    tables: dict[str, Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        items = [f"{n:03}" for n in range(ITEMS)]  # which no reader may take for numbers
        users = [f"u{n}" for n in range(16)]

        def maybe(value: Any, share: float) -> Any:
            return None if rng.random() < share else value

        log = [
            {
                "user_id": maybe(str(rng.choice(users[:12])), self.guests),
                "item_id": maybe(str(rng.choice([*items, "gone"])), 0.02),
                "timestamp": maybe(START + 600 * int(rng.integers(0, 200)), 0.02),
                "rating": maybe(float(rng.integers(2, 11)) / 2, 0.1),
            }
            for _ in range(150)
        ]
        stars = [START + n for n in range(3)]
        log += [
            {"user_id": "strict", "item_id": items[n], "timestamp": at, "rating": 1.5}
            for n, at in enumerate(stars)
        ]
        self.tables = {
            "interactions": log,
            "items": [
                {
                    "item_id": item,
                    "artist_id": maybe(f"{rng.integers(0, 9):02}", 0.4),
                    "available": maybe(bool(rng.random() < 0.8), 0.3),
                    "stock": maybe(float(rng.integers(0, 9)), 0.3),
                }
                for item in items
            ],
            "users": [{"user_id": maybe(user, 0.2)} for user in users],
            "blocked": [
                {"item_id": str(rng.choice(items)), "user_id": maybe(str(rng.choice(users)), 0.3)}
                for _ in range(12)
            ],
        }

    @property
    def named(self) -> set[str]:
        """Who must have a list, and nobody else."""
        rows = [row for row in self.tables["interactions"] if row["timestamp"] is not None]
        return {str(row["user_id"]) for row in [*rows, *self.tables["users"]] if row["user_id"]}

    def closed(self) -> dict[str, set[str]]:
        """What may be in no list of each user; of `""` in nobody's."""
        found: dict[str, set[str]] = defaultdict(set)
        for row in self.tables["interactions"]:
            if row["timestamp"] is not None and row["user_id"]:
                found[row["user_id"]].add(row["item_id"])
        for row in self.tables["blocked"]:
            found[row["user_id"] or ""].add(row["item_id"])
        for row in self.tables["items"]:
            if row["available"] is False or (row["stock"] is not None and row["stock"] < 1):
                found[""].add(row["item_id"])
        return found


def by_hand(rows: Rows, path: Path, rng: np.random.Generator) -> Path:
    """CSV with blanks, flags and times in any form."""

    def text(name: str, value: Any) -> str:
        if value is None:
            return str(rng.choice(BLANKS))
        if isinstance(value, bool):
            return str(
                rng.choice(["true", "True", "1", "yes", "T"] if value else ["false", "0", "n"])
            )
        if name == "timestamp":
            at = datetime.fromtimestamp(value, UTC)
            forms = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.123+00:00")
            return str(rng.choice([str(value), f"{value}.5", *map(at.strftime, forms)]))
        return str(rng.choice([f'"{value}"', str(value)]))

    delimiter = str(rng.choice([",", ";", "\t"]))
    blanks = "" if len(rows[0]) == 1 else delimiter * (len(rows[0]) - 1)
    lines = [delimiter.join(text(name, value) for name, value in row.items()) for row in rows]
    content = "\n".join(
        [delimiter.join(rows[0]), *lines, *([blanks] if path.stem == "items" else [])]
    )
    data = str(rng.choice(["", "\ufeff"])) + content + "\n"
    target = path.with_suffix(".csv.gz")
    target.write_bytes(gzip.compress(data.encode()))
    return target


def by_csv(rows: Rows, path: Path, rng: np.random.Generator) -> Path:
    del rng
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path.with_suffix(".csv")


def by_pandas(rows: Rows, path: Path, rng: np.random.Generator) -> Path:
    frame = pd.DataFrame(rows)
    if "timestamp" in frame and rng.random() < 0.5:
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="s", utc=True)
    if rng.random() < 0.5:
        frame.to_csv(path.with_suffix(".csv"), index=False)
        return path.with_suffix(".csv")
    frame.to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def by_duckdb(rows: Rows, path: Path, rng: np.random.Generator) -> Path:
    table = pa.Table.from_pylist(rows)
    columns = {
        "timestamp": "make_timestamptz(timestamp * 1000000) AS timestamp",
        "rating": "rating::DECIMAL(9, 1) AS rating",
        "stock": "stock::DECIMAL(9, 2) AS stock",
    }
    chosen = ", ".join(columns.get(name, name) for name in table.column_names)
    suffix = str(rng.choice([".csv", ".parquet"]))
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'Europe/Berlin'")
    connection.register("rows_of", table)
    connection.execute(f"COPY (SELECT {chosen} FROM rows_of) TO '{path.with_suffix(suffix)}'")
    return path.with_suffix(suffix)


def by_arrow(rows: Rows, path: Path, rng: np.random.Generator) -> Path:
    """Parquet whose blanks are null, empty or white space, of other types each time."""
    taken: dict[str, pa.Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "timestamp":
            kind = pa.timestamp(str(rng.choice(["ms", "us", "ns"])), "Europe/Berlin")
            taken[name] = pa.array([v and datetime.fromtimestamp(v, UTC) for v in values], kind)
        elif name == "available":
            taken[name] = pa.array([None if v is None else int(v) for v in values], pa.int8())
        elif name in ("rating", "stock"):
            taken[name] = pa.array(values, pa.float32())
        else:
            blank = rng.choice(np.array([None, "", " "], object))
            texts = pa.array([blank if v is None else v for v in values], pa.string())
            taken[name] = texts.dictionary_encode() if rng.random() < 0.5 else texts
    pq.write_table(pa.table(taken), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def by_folders(rows: Rows, path: Path, rng: np.random.Generator) -> Path:
    """As Spark partitions a table by its last column."""
    del rng
    *_, last = rows[0]
    groups: dict[Any, Rows] = defaultdict(list)
    for row in rows:
        groups[row[last]].append({name: row[name] for name in row if name != last})
    for number, (value, group) in enumerate(groups.items()):
        name = "__HIVE_DEFAULT_PARTITION__" if value is None else value
        folder = path.with_suffix(".parquet") / f"{last}={name}"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(group), folder / f"part-{number}.parquet")
    (path.with_suffix(".parquet") / "_temporary").mkdir()
    pq.write_table(
        pa.table({"user_id": ["ghost"]}), path.with_suffix(".parquet") / "_temporary/x.parquet"
    )
    return path.with_suffix(".parquet")


Writer = Callable[[Rows, Path, np.random.Generator], Path]
WRITERS: tuple[Writer, ...] = (by_hand, by_csv, by_pandas, by_duckdb, by_arrow)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Features of all items and a VisRank model."""
    features, model = Store.at(str(tmp_path / "features")), Store.at(str(tmp_path / "model"))
    ids = [f"{n:03}" for n in range(ITEMS)]
    feature_ND = np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float16)
    manifest = write_features(features, ids, feature_ND)
    sizes = Sizes(items=ITEMS, users=0, feature_dim=DIM)
    visrank = MODELS["visrank"](MODELS["visrank"].Config(), sizes)
    visrank.fit(Catalogue(feature_ND, np.arange(ITEMS)), Jagged.empty(0))
    artifact = Artifact(
        name="visrank", model=visrank, config=MODELS["visrank"].Config(), sizes=sizes,
        item_ids=pa.array(ids), user_ids=None, metrics={}, model_id="visrank",
        held_out=HELD_OUT.empty_table(),
        provenance=provenance(
            features_digest=manifest.digest, features_identity=manifest.identity,
            interactions=InteractionsProvenance(min_rating=LIKED),
        ),
    )  # fmt: skip
    save_artifact(artifact, model)
    return tmp_path


def lists_of(workspace: Path, places: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Each user's list, as scoring makes it."""
    model = Store.at(str(workspace / "model"))
    inputs = ScoringInputs(
        model=model,
        features=Store.at(str(workspace / "features")),
        interactions=InteractionsConfig(min_rating=LIKED),
        interactions_uri=str(places["interactions"]),
        items_table=InputTable(uri=str(places["items"]), key="items"),
        users_table=InputTable(uri=str(places["users"]), key="users"),
        rules=RulesConfig(cap=1, min_stock=1, blocked=str(places["blocked"])),
    )
    data, arrays = prepare_scoring(inputs, SHARDS, "user_to_item", 100)
    target = RunSpec(Store.at(str(workspace)), SHARDS, K, "nested", "user_to_item", {})
    scorer = load_artifact(model).model.scorer(arrays)
    lists = ShardRecommender(data, scorer, target, None, Timer(QUIET))
    tables = [lists(shard, data.queries.read(shard))[0] for shard in range(SHARDS)]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["user_id"]: [*row["items"], {"cold": row["cold"]}] for row in rows}


def require_right(shop: Shop, lists: dict[str, list[dict[str, Any]]]) -> None:
    assert lists.keys() == shop.named | {"strict"}
    assert lists["strict"][-1]["cold"]
    closed = shop.closed()
    artist = {row["item_id"]: row["artist_id"] for row in shop.tables["items"]}
    for user, entries in lists.items():
        items = [entry["item_id"] for entry in entries[:-1]]
        assert not set(items) & (closed[""] | closed[user])
        count = Counter(artist[item] for item in items if artist[item] is not None)
        assert max(count.values(), default=0) <= 1
        # Works without an artist are nobody's, so all of them may be there.
        mine = closed[""] | closed[user]
        free = [item for item in artist if artist[item] is None and item not in mine]
        makers = {artist[item] for item in artist if artist[item] and item not in mine}
        assert len(items) == min(K, len(free) + len(makers))


def test_same_shop_has_same_lists_from_every_writer(workspace: Path, tmp_path: Path) -> None:
    compared = Counter[str]()
    for seed in range(amount(2, 40)):
        shop, rng, first = Shop(seed), np.random.default_rng(seed), None
        for number, writer in enumerate(WRITERS):
            places = {}
            for name, rows in shop.tables.items():
                (folder := tmp_path / f"{seed}-{number}").mkdir(exist_ok=True)
                places[name] = writer(rows, folder / name, rng)
            if writer is by_arrow:  # and one table in folders
                places["interactions"] = by_folders(
                    shop.tables["interactions"], folder / "log", rng
                )
            lists = lists_of(workspace, places)
            require_right(shop, lists)
            first = first or lists
            assert lists == first
            compared["lists"] += len(lists)
            compared["tables"] += len(places)
        cells = (cell for rows in shop.tables.values() for row in rows for cell in row.values())
        compared["blanks"] += sum(cell is None for cell in cells) * len(WRITERS)
    measured(
        26, shops=amount(2, 40), tables=compared["tables"], blanks=compared["blanks"],
        lists=compared["lists"], lists_that_differ=0, lists_of_guests=0,
    )  # fmt: skip


def test_guests_above_the_limit_are_refused(workspace: Path, tmp_path: Path) -> None:
    refused = 0
    for seed in range(amount(1, 10)):
        shop, rng = Shop(seed, guests=0.5), np.random.default_rng(seed)
        for number, writer in enumerate(WRITERS):
            (folder := tmp_path / f"{seed}-{number}").mkdir()
            places = {name: writer(rows, folder / name, rng) for name, rows in shop.tables.items()}
            with pytest.raises(
                InputError, match=r"of 153 rows of .* lack a user_id.*such as user_id"
            ):
                lists_of(workspace, places)
            refused += 1
    measured(26, tables_refused=refused)
