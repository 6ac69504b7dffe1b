"""Every model on one data set and one split: a small sweep for each, then several seeds.

python -m benchmarks.models movies --source ../shared/data/movies
python -m benchmarks.models demo --config configs/demo_train.yaml --only vbpr,multivae

Each trainable model tries the same number of settings: its own defaults and draws from its space in
`tune_spaces/`, compared by validation AUC with one seed and without the refit. The best setting is
then trained with each seed as jobs/train.py does and evaluated by `benchmarks.quality`: test AUC
and recall with intervals, and paired differences. `--config` applies to CuratorNet only, whose keys
it may name.
"""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError

from benchmarks.machine import machine
from benchmarks.quality import CHECKOUT, asked, data_parser, measure, table
from visrec.cli.parse import parse
from visrec.config import plain
from visrec.errors import VisrecError
from visrec.models import MODELS
from visrec.pipelines.train import TrainJob, training_inputs, training_recipe
from visrec.storage.store import Store
from visrec.training.data import TrainingData, load_training_data
from visrec.training.fit import build_trainer
from visrec.tuning.spaces import load_space, sample_values

TRAINS = tuple(name for name, model in MODELS.items() if model.trains_on != "nothing")


def best_flags(
    name: str, base: Sequence[str], settings: int, seed: int
) -> tuple[list[str], list[dict[str, Any]]]:
    """The flags of the setting with the highest validation AUC, and what each one reached.

    Args:
        name: the name of the model.
        base: flags of jobs/train.py that all share.
        settings: how many are tried, the defaults first.
        seed: the seed of the draws.
    """
    space = load_space(str(CHECKOUT / "tune_spaces" / f"{name}.yaml"))
    data: TrainingData | None = None
    tried: list[dict[str, Any]] = []
    for number in range(settings):
        values = sample_values(space, seed, number) if number else {}
        flags = [f"--{key}={value}" for key, value in values.items()]
        config = parse(TrainJob, [*base, "--model.name", name, *flags])
        if data is None:
            features = Store.at(config.resolve(config.features, "features"))
            data = load_training_data(training_inputs(config, features))
        start, trainer = time.perf_counter(), build_trainer(training_recipe(config), data)
        # One that diverged has the worst AUC there is.
        with contextlib.suppress(VisrecError):
            trainer.run(lambda _: None)
        auc, took = trainer.progress.best_auc, time.perf_counter() - start
        print(f"  {name} {' '.join(flags) or 'defaults'}: {auc:.4f}, {took:.0f} s", flush=True)
        tried.append({"flags": flags, "val_auc": auc, "seconds": took})
    return max(tried, key=lambda one: one["val_auc"])["flags"], tried


def parameters(name: str, base: Sequence[str], flags: Sequence[str]) -> int:
    """How many numbers training moves."""
    config = parse(TrainJob, [*base, "--model.name", name, *flags])
    features = Store.at(config.resolve(config.features, "features"))
    data = load_training_data(training_inputs(config, features))
    model = MODELS[name](config.model.config, data.sizes)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = data_parser(__doc__ or "")
    parser.add_argument("--only", help="models, with commas between (all that train)")
    parser.add_argument("--settings", type=int, default=3, help="tried of each model (3)")
    args, base, flags = asked(parser, config_for_all=False)
    base += flags
    names = args.only.split(",") if args.only else list(TRAINS)
    if unknown := set(names) - set(TRAINS):
        parser.error(f"--only {min(unknown)}: expected of {', '.join(TRAINS)}")
    own = {"curatornet": ["--config", args.config] if args.config else []}
    variants, tried = {}, {}
    try:
        for name in names:
            head = own.get(name, [])
            chosen, tried[name] = best_flags(
                name, [*head, *base, "--train.refit=false"], args.settings, seed=0
            )
            variants[name] = [*head, "--model.name", name, *chosen]
        found = measure(base, variants, range(args.seeds))
        counts = {name: parameters(name, base, variants[name]) for name in names}
    except (VisrecError, ArgumentError) as error:
        sys.exit(f"models: {error}")
    print(
        f"\n{args.data}: {found['users']:,} users held out, {found['items']:,} items, "
        f"{args.seeds} seeds\n\n{table(found)}"
    )
    if args.json:
        settings = {**vars(args), "flags": flags, "variants": variants}
        told = {"asked": settings, **machine(), **found, "parameters": counts, "tried": tried}
        print(json.dumps(plain(told)))


if __name__ == "__main__":
    main()
