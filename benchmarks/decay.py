"""The effect of weight decay on a model's validation AUC, over seeds.

python -m benchmarks.decay demo --config configs/demo_train.yaml
python -m benchmarks.decay movies --source ../shared/data/movies -- --model.name curatornet
python -m benchmarks.decay clothing --source ../shared/data/clothing --decays 0,0.1,1,10

Each decay is trained with each seed, in this process and without the refit, and scored by its best
epoch. The spread is the standard deviation over seeds; the effect is the mean AUC of the best decay
minus that of the worst. Arguments after `--` are flags of jobs/train.py, whose
default model is trained without `--model.name`.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jsonargparse import ArgumentError

from benchmarks.machine import machine
from benchmarks.quality import asked, data_parser
from visrec.cli.parse import parse
from visrec.config import plain
from visrec.errors import VisrecError
from visrec.pipelines.train import TrainJob, training_inputs, training_recipe
from visrec.storage.store import Store
from visrec.training.data import load_training_data
from visrec.training.fit import build_trainer

DECAYS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def measure(
    flags: Sequence[str], decays: Sequence[float], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """One row a decay: the best validation AUC with each seed, and the epoch it was at.

    Args:
        flags: flags of jobs/train.py.
        decays: values of --train.weight_decay.
        seeds: the seeds of training.
    """
    config = parse(TrainJob, [*flags, "--train.refit=false"])
    features = Store.at(config.resolve(config.features, "features"))
    data = load_training_data(training_inputs(config, features))
    rows = []
    for decay in decays:
        row: dict[str, Any] = {"decay": decay, "val_auc": [], "best_epoch": [], "seconds": []}
        for seed in seeds:
            train = dataclasses.replace(config.train, weight_decay=decay, seed=seed)
            trainer = build_trainer(training_recipe(dataclasses.replace(config, train=train)), data)
            start = time.perf_counter()
            # One that diverged has the worst AUC there is.
            with contextlib.suppress(VisrecError):
                trainer.run(lambda _: None)
            row["val_auc"].append(trainer.progress.best_auc)
            row["best_epoch"].append(trainer.progress.best_epoch)
            row["seconds"].append(time.perf_counter() - start)
            print(f"  decay {decay:g}, seed {seed}: {row['val_auc'][-1]:.4f}", flush=True)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What `measure` gives as text."""
    lines = ["decay    val AUC            best epoch"]
    for row in rows:
        mean, spread = np.mean(row["val_auc"]), _spread(row)
        epochs = ", ".join(str(epoch) for epoch in row["best_epoch"])
        lines.append(f"{row['decay']:<8g} {mean:.4f} ± {spread:.4f}    {epochs}")
    means = [float(np.mean(row["val_auc"])) for row in rows]
    spread = float(np.mean([_spread(row) for row in rows]))
    lines.append(f"the axis moves {max(means) - min(means):.4f}, seeds {spread:.4f}")
    return "\n".join(lines)


def _spread(row: dict[str, Any]) -> float:
    seeds = len(row["val_auc"])
    return float(np.std(row["val_auc"], ddof=seeds > 1))  # of one seed there is none to tell


def main() -> None:
    parser = data_parser(__doc__ or "")
    parser.add_argument("--decays", help="with commas between")
    args, base, flags = asked(parser)
    decays = [float(one) for one in args.decays.split(",")] if args.decays else DECAYS
    try:
        rows = measure([*base, *flags], decays, range(args.seeds))
    except (VisrecError, ArgumentError) as error:
        sys.exit(f"decay: {error}")
    print(f"\n{args.data}, {args.seeds} seeds\n\n{table(rows)}")
    if args.json:
        print(
            json.dumps(plain({"asked": {**vars(args), "flags": flags}, **machine(), "rows": rows}))
        )


if __name__ == "__main__":
    main()
