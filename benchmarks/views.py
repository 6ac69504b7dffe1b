"""Several pictures of an item: pooled into one feature, against the first one alone.

python -m benchmarks.views demo --features runs/views/demo -- --model.name curatornet
python -m benchmarks.views clothing --source ../shared/data/clothing \\
    --features runs/views/clothing --seeds 1 -- --train.refit=false

Each picture is cut into windows at random places, which stand for photographs of one thing from
several sides. jobs/extract_features.py makes features of the first window of each item, and pooled
features of all windows with `--image_pattern`. The same model is trained on both, and the same
users are ranked. `--features` names the folder of both. Arguments after `--` are flags of
jobs/train.py, whose default model is trained without `--model.name`.
"""

import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from PIL import Image

from benchmarks.machine import machine
from benchmarks.quality import (
    COMPARED,
    FIT,
    Ranked,
    Values,
    asked,
    data_parser,
    fit,
    rank,
    run_job,
    table,
)
from visrec.cli.parse import parse
from visrec.config import plain
from visrec.errors import VisrecError
from visrec.evaluation.bootstrap import resample
from visrec.evaluation.data import EvaluationInputs, prepare_evaluation
from visrec.features.table import FEATURES_MANIFEST
from visrec.pipelines.job_tables import interactions_uri, items_table
from visrec.pipelines.train import TrainJob, training_inputs
from visrec.storage.store import Store
from visrec.training.data import load_training_data

VIEWS = 3
WINDOW = 0.6  # of the width and of the height: the share that one view shows
BASELINE = "visrank-mean"
PATTERN = "{item_id}_{view}.jpg"


def cut(images: Path, folder: Path) -> None:
    """Writes the windows of every picture, `all/<item>_<view>.jpg`, and the first as `first/`."""
    for name in ("all", "first"):
        (folder / name).mkdir(parents=True)
    for path in sorted(images.iterdir()):
        draw = random.Random(path.stem)
        with Image.open(path) as picture:
            width, height = (round(side * WINDOW) for side in picture.size)
            for view in range(1, VIEWS + 1):
                left = draw.randint(0, picture.width - width)
                top = draw.randint(0, picture.height - height)
                window = picture.convert("RGB").crop((left, top, left + width, top + height))
                sink = io.BytesIO()
                window.save(sink, "JPEG", quality=90)
                (folder / "all" / f"{path.stem}_{view}.jpg").write_bytes(sink.getvalue())
                if view == 1:
                    (folder / "first" / f"{path.stem}.jpg").write_bytes(sink.getvalue())


def features_of(parent: str, images: Path) -> dict[str, Store]:
    """Features of the first windows, and of all of them pooled; made where they are not there."""
    stores = {name: Store.at(f"{parent}/{name}") for name in ("first", "pooled")}
    if not all(store.exists(FEATURES_MANIFEST) for store in stores.values()):
        with tempfile.TemporaryDirectory() as folder:
            cut(images, Path(folder))
            images_of = {
                "first": ["--images", f"{folder}/first"],
                "pooled": ["--images", f"{folder}/all", "--image_pattern", PATTERN],
            }
            for name, store in stores.items():
                flags = ["--workspace", folder, "--features", store.root, *images_of[name]]
                run_job("extract_features", *flags)
    return stores


def compare(base: Sequence[str], stores: dict[str, Store], seeds: Sequence[int]) -> dict[str, Any]:
    """Trains on both kinds of features and ranks the same users.

    Returns:
        users, items: how many are ranked, and among how many.
        models, fits, paired: as `benchmarks.quality.measure`; the differences are pooled less
            first.
    """
    config = parse(TrainJob, base)
    values: dict[str, Values] = {}
    fits = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, features in stores.items():
            data = load_training_data(training_inputs(config, features))
            fitted = [fit(config, data, n, Store.at(f"{folder}/{kind}-seed-{n}")) for n in seeds]
            prepared = prepare_evaluation(
                EvaluationInputs(
                    models={one.store.name: one.store for one in fitted},
                    features=features,
                    interactions=config.interactions,
                    interactions_uri=interactions_uri(config, config.interactions),
                    items_table=items_table(config, config.items, config.items_columns),
                    truth=None,
                )
            )
            ranked = dict(
                zip([c.label for c in prepared.evaluated_models], rank(prepared), strict=True)
            )
            name = f"{config.model.name} {kind}"
            values[name] = Ranked.mean([ranked[one.store.name] for one in fitted]).users
            values[f"{BASELINE} {kind}"] = ranked[BASELINE].users
            fits[name] = {key: [getattr(one, key) for one in fitted] for key in FIT}
    resampled = resample(values)
    paired = {}
    for model in (config.model.name, BASELINE):
        differences = resampled.difference(f"{model} pooled", f"{model} first")
        paired[f"{model}: pooled - first"] = {metric: differences[metric] for metric in COMPARED}
    return {
        "users": len(prepared.held_out),
        "items": len(prepared.item_ids),
        "models": {name: resampled.summary(name) for name in values},
        "fits": fits,
        "paired": paired,
    }


def main() -> None:
    args, base, flags = asked(data_parser(__doc__ or ""))
    workspace = base[base.index("--workspace") + 1]
    images = Path(args.source or workspace, "images")
    try:
        stores = features_of(os.path.abspath(args.features or f"{workspace}/views"), images)
        found = compare([*base, *flags], stores, range(args.seeds))
    except (VisrecError, ArgumentError) as error:
        sys.exit(f"views: {error}")
    print(
        f"\n{args.data}: {found['users']:,} users held out, {found['items']:,} items, {VIEWS} "
        f"views of {WINDOW:.0%} of each side, {args.seeds} seeds\n\n{table(found)}"
    )
    if args.json:
        settings = {**vars(args), "flags": flags, "views": VIEWS, "window": WINDOW}
        print(json.dumps(plain({"asked": settings, **machine(), **found})))


if __name__ == "__main__":
    main()
