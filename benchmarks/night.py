"""A first night of the demo gallery, the next night, and that next night done from scratch.

python -m benchmarks.night --json

The first night does everything. Then ten pictures are added and one user in twenty takes another
item. The next night does only what that requires; for comparison, a night runs in a copy of the
workspace without features, models and lists. Both must publish the same lists. The result has the
seconds of each step as the night records them, of the whole process, and what was done again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from benchmarks.machine import machine
from visrec.demo.gallery import GalleryConfig, write_gallery
from visrec.storage.store import Store

CHECKOUT = Path(__file__).parents[1]
FIRST, SECOND = "2026-11-20", "2026-11-21"  # the nights; the model is that of the 19th, a Thursday
PICTURES, USERS = 10, 0.05


def night(workspace: Path, as_of: str) -> dict[str, Any]:
    """Runs a night as a process of its own; returns what it says of itself, and its seconds."""
    command = [sys.executable, "jobs/nightly.py", "--local", "--workspace", str(workspace)]
    flags = ["--as-of", as_of, "--train_config", "configs/demo_train.yaml"]
    start = time.perf_counter()
    subprocess.run([*command, *flags], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    told = json.loads((workspace / "nights" / f"{as_of}.json").read_text())
    kept = ("pictures", "run through the network", "model", "users", "cold users", "published")
    facts = {name: told[name] for name in (*kept, "lists carried over")}
    return {"seconds": round(seconds, 1), "steps_s": told["steps_s"], **facts}


def a_day(workspace: Path) -> int:
    """Ten new pictures, and some users take something; returns how many users."""
    originals = sorted((workspace / "images").iterdir())[:PICTURES]
    for number, path in enumerate(originals):
        with Image.open(path) as picture:
            ImageOps.mirror(picture).save(workspace / "images" / f"new-{number}{path.suffix}")
    path = workspace / "interactions.parquet"
    table = pq.read_table(path)
    users = sorted(set(table["user_id"].to_pylist()))[:: round(1 / USERS)]
    when = int(datetime.fromisoformat(FIRST).replace(tzinfo=UTC).timestamp()) + 3600
    item = table["item_id"][0].as_py()
    row: dict[str, Any] = {"user_id": users, "item_id": [item] * len(users)}
    row["timestamp"] = [when] * len(users)
    columns = [pa.array(row.get(f.name, [None] * len(users))).cast(f.type) for f in table.schema]
    pq.write_table(pa.concat_tables([table, pa.table(columns, schema=table.schema)]), path)
    return len(users)


def lists(workspace: Path, as_of: str) -> list[dict[str, Any]]:
    files = sorted((workspace / "recommendations" / f"run={as_of}").glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop, again = Path(folder, "shop"), Path(folder, "again")
        write_gallery(GalleryConfig(), Store.at(str(shop)).write)
        first = night(shop, FIRST)
        changed = a_day(shop)
        # The model of the training day is given: it is no part of what is compared.
        for name in ("images", "models", "evaluation"):
            shutil.copytree(shop / name, again / name)
        for path in shop.glob("*.parquet"):
            shutil.copy2(path, again / path.name)
        second, whole = night(shop, SECOND), night(again, SECOND)
        same = lists(shop, SECOND) == lists(again, SECOND)
    for name, told in (("first night", first), ("next night", second), ("from nothing", whole)):
        print(f"{name}: {told}", flush=True)
    ratio = whole["seconds"] / second["seconds"]
    print(f"{changed} users changed, the next night {ratio:.1f} times as fast, same lists: {same}")
    if not same:
        sys.exit("the lists differ")
    if args.json:
        found = {"first": first, "next": second, "from_nothing": whole}
        told = {"ratio": round(ratio, 2), "users_changed": changed, "same_lists": same}
        print(json.dumps({"asked": vars(args), **machine(), **found, **told}))


if __name__ == "__main__":
    main()
