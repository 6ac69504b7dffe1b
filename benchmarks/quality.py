"""Ranking quality: means over seeds, and paired differences to the baselines.

python -m benchmarks.quality demo
python -m benchmarks.quality movies --source ../shared/data/movies --config configs/x.yaml --seeds 5
python -m benchmarks.quality clothing --source ../shared/data/clothing --variants variants.yaml
python -m benchmarks.quality movies --source ../shared/data/movies -- --train.learning_rate 2e-3

A data set's workspace is created with the jobs, on this machine, if it does not exist. Everything
else runs in this process, without Ray. Arguments after `--`, and the lists of a variants file, are
flags of jobs/train.py. A variants file names several configurations,

    default: []
    no dropout: [--model.feature_dropout=0]

each of which gets a row and its paired differences to the first and to every baseline. A user's
value under a configuration is the mean over its seeds, so the interval expresses the uncertainty
over users; the standard deviation over seeds stands beside each mean. Many pairs are compared, so
their p-values are corrected (Holm 1979, Scandinavian Journal of Statistics 6).

A second table divides the users by the size of their profiles, and the held-out items by how many
users had taken them before (the user's moment counts): there a user's value is the mean AUC of
the items that belong to the group.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jsonargparse import ArgumentError

from benchmarks.als import LABEL, with_als
from benchmarks.machine import machine
from visrec.cli.parse import parse
from visrec.config import plain
from visrec.errors import InputError, VisrecError
from visrec.evaluation.aggregate import PROFILE_SIZES, in_ranges
from visrec.evaluation.baselines import UNTRAINED
from visrec.evaluation.bootstrap import RESAMPLES, resample
from visrec.evaluation.data import (
    EvaluationData,
    EvaluationInputs,
    prepare_evaluation,
)
from visrec.evaluation.ranking import ranker
from visrec.features.table import FEATURES_MANIFEST
from visrec.interactions.activity import DAY
from visrec.models import MODELS
from visrec.models.artifact import save_artifact
from visrec.pipelines.job_tables import interactions_uri, items_table
from visrec.pipelines.train import TrainJob, training_inputs, training_recipe
from visrec.retrieval.metrics import per_user
from visrec.retrieval.moments import Moments
from visrec.retrieval.ranks import TargetRanks
from visrec.storage.store import Store
from visrec.training.data import TrainingData, load_training_data
from visrec.training.fit import build_model, build_trainer, train_to_end, training_metrics
from visrec.training.task import TrainTask, build_artifact
from visrec.yaml_text import load_yaml

CHECKOUT = Path(__file__).parents[1]
SHOWN = {"auc": "AUC", "recall@20": "R@20", "recall@100": "R@100"}
COMPARED = ("auc", "recall@20")
FIT = ("val_auc", "epochs", "seconds")
MIN_RATING = 4.0  # what counts as a positive of the movies
# For figures that are CuratorNet's, whatever the default model is.
CURATORNET = ("--model.name", "curatornet")
# How many users had taken a held-out item before.
TAKERS = {"0": (0, 0), "1-4": (1, 4), "0-4": (0, 4), "5-19": (5, 19), "20+": (20, np.inf)}
Values = dict[str, npt.NDArray[np.float64]]  # of a metric, one a user
Groups = dict[str, dict[str, Any]]  # by what divides, by group: see `measure`


# The data sets: each makes what is missing and gives the flags of jobs/train.py that name it.


def movies(workspace: str, source: str, features: str | None) -> list[str]:
    """MovieLens small with features of its posters: leave one out, items with a positive alone."""
    interactions = f"{source}/interactions.parquet"
    if features is None and not _has_features(workspace):
        log = pq.read_table(interactions)
        liked = log.filter(pc.greater_equal(log["rating"], MIN_RATING))["item_id"]
        table = pq.read_table(f"{source}/features.parquet")
        table = table.filter(pc.is_in(table["item_id"], value_set=liked.cast("string")))
        Path(workspace).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, f"{workspace}/features.parquet")
        run_job("import_features", "--workspace", workspace, "--backbone", "efficientnet-lite0")
    return [
        *("--interactions.path", interactions, "--items", f"{source}/items.parquet"),
        *("--interactions.min_rating", str(MIN_RATING), "--split.by", "item"),
    ]


def clothing(workspace: str, source: str, features: str | None) -> list[str]:
    """Photographs of clothes, one owner each: nothing but the picture can help."""
    if features is None and not _has_features(workspace):
        run_job("extract_features", "--workspace", workspace, "--images", f"{source}/images")
    tables = ("--interactions.path", f"{source}/interactions.parquet")
    return [*tables, "--items", f"{source}/items.parquet"]


def gallery(scenario: str, workspace: str, source: str, features: str | None) -> list[str]:
    """A painted gallery: that of make demo, or one with other sales."""
    del source
    if not Path(workspace, "interactions.parquet").exists():
        run_job("make_gallery", "--workspace", workspace, "--gallery.scenario", scenario)
    if features is None and not _has_features(workspace):
        run_job("extract_features", "--workspace", workspace)
    return []


def _has_features(workspace: str) -> bool:
    return Store.at(workspace).exists(f"features/{FEATURES_MANIFEST}")


SETS: dict[str, Callable[[str, str, str | None], list[str]]] = {
    "movies": movies,
    "clothing": clothing,
    "demo": partial(gallery, "editions"),
    "trends": partial(gallery, "trends"),
    "ugallery": partial(gallery, "ugallery"),
}
SOURCED = ("movies", "clothing")  # read from files that are not of this project


def run_job(name: str, *flags: str) -> None:
    """Runs a job on this machine, and ends with it where it fails: it has said why."""
    command = [sys.executable, f"jobs/{name}.py", *flags, "--local"]
    code = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
    if code:
        sys.exit(code)


# The measurement.


@dataclasses.dataclass(frozen=True)
class Fitted:
    """One configuration with one seed.

    Args:
        store: the model's directory.
        val_auc: the validation AUC of the epoch that was kept; None for a model that needs no
            training.
        epochs: until training stopped, those of the refit as well.
        seconds: the seconds of training.
    """

    store: Store
    val_auc: float | None
    epochs: int
    seconds: float


def fit(config: TrainJob, data: TrainingData, seed: int, store: Store) -> Fitted:
    """Trains as jobs/train.py does, in this process."""
    recipe = training_recipe(
        dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    )
    start, val_auc, epochs = time.perf_counter(), None, 0
    if MODELS[recipe.model_name].trains_on == "nothing":
        model = build_model(recipe, data)
    else:
        trainer = train_to_end(build_trainer(recipe, data), recipe, data, lambda _: None)
        model = trainer.model
        model.load_state_dict(trainer.best_weights)
        told = training_metrics(trainer.progress)
        val_auc, epochs = told["val_auc"], len(told["history"]) + len(told["refit"])
    seconds = time.perf_counter() - start
    name = store.name
    no_ray: Any = None
    job = TrainTask(recipe, no_ray, store, name, settings_digest="", threads=1, progress_actor=None)
    save_artifact(build_artifact(job, data, model, {}), store)
    print(f"  {name}: validation AUC {val_auc}, {epochs} epochs, {seconds:.0f} s", flush=True)
    return Fitted(store, val_auc, epochs, seconds)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """How one model ranks E test users.

    Args:
        users: the metrics of every test user.
        auc_P: the AUC of each of their P held-out items, one user's after another's.
    """

    users: Values
    auc_P: npt.NDArray[np.float64]

    @staticmethod
    def of(ranks: TargetRanks) -> "Ranked":
        negatives_P = np.repeat(np.maximum(ranks.negatives_B, 1), np.diff(ranks.offsets))
        return Ranked(per_user(ranks), 1 - ranks.misordered_P / negatives_P)

    @staticmethod
    def mean(seeds: "Sequence[Ranked]") -> "Ranked":
        """Each user's and each item's mean over the seeds."""
        users = {m: np.mean([one.users[m] for one in seeds], axis=0) for m in seeds[0].users}
        return Ranked(users, np.mean([one.auc_P for one in seeds], axis=0))


def rank(data: EvaluationData) -> list[Ranked]:
    """The test users as each model of the table ranks them."""
    rows = np.arange(len(data.held_out))
    return [Ranked.of(ranker(c, data).ranks(rows)) for c in data.evaluated_models]


def takers_before(moments: Moments) -> npt.NDArray[np.int64]:
    """(P,) how many users had taken each held-out item before its user's moment."""
    targets, days = moments.held_out.targets, moments.activity.days
    day_P = np.repeat(moments.moment_E // DAY, targets.lengths)
    pairs = zip(targets.values, day_P, strict=True)
    return np.array([np.searchsorted(days[item], day) for item, day in pairs], np.int64)


def by_group(ranked: Mapping[str, Ranked], moments: Moments, first: str) -> Groups:
    """The figures of each group of users, and of each group of held-out items: see `measure`."""
    targets = moments.held_out.targets
    size_E = moments.held_out.profiles.lengths
    takers_P, user_P = takers_before(moments), targets.row_ids
    groups: Groups = {"profile size": {}, "takers": {}}
    for name, inside_E in in_ranges(size_E, PROFILE_SIZES):
        values = {
            label: {metric: one.users[metric][inside_E] for metric in COMPARED}
            for label, one in ranked.items()
        }
        groups["profile size"][name] = _group(values, first)
    for name, inside_P in in_ranges(takers_P, TAKERS):
        count_E = np.bincount(user_P[inside_P], minlength=len(size_E))
        some_E = count_E > 0
        values = {
            label: {
                "auc": np.bincount(user_P[inside_P], one.auc_P[inside_P], len(size_E))[some_E]
                / count_E[some_E]
            }
            for label, one in ranked.items()
        }
        groups["takers"][name] = _group(values, first)
    return groups


def _group(values: Mapping[str, Values], first: str) -> dict[str, Any]:
    resampled = resample(values)
    return {
        "models": {label: resampled.summary(label) for label in values},
        "paired": {
            f"{first} - {label}": resampled.difference(first, label)
            for label in values
            if label != first
        },
    }


def measure(
    base: Sequence[str], variants: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Trains every variant with every seed, and ranks the held-out users by all of them.

    Args:
        base: flags of jobs/train.py that all share.
        variants: each one's further flags.
        seeds: the seeds of training.

    Returns:
        users, items: how many are ranked, and among how many.
        models: `{label: {metric: {"mean", "low", "high", "n"}}}`, variants first; theirs have the
            means of the `seeds` and their `spread`, too.
        fits: `{variant: {"val_auc", "epochs", "seconds"}}`, a list over the seeds each.
        paired: `{"a - b": {metric: {"mean", "low", "high", "above", "n", "p"}}}`: every variant
            less the first variant, and less every baseline. `p` is corrected for all pairs of its
            metric.
        groups: `{"profile size" | "takers": {group: {"models", "paired"}}}`, as above, without
            `p`; the pairs are those of the first variant.
    """
    _require_no_baseline(variants)
    configs = {name: parse(TrainJob, [*base, *flags]) for name, flags in variants.items()}
    with tempfile.TemporaryDirectory() as folder:
        fitted: dict[str, list[Fitted]] = {}
        for number, (name, config) in enumerate(configs.items()):
            print(f"{name}:", flush=True)
            data = load_training_data(training_inputs(config, _features(config)))
            stores = [Store.at(f"{folder}/{number}-seed-{seed}") for seed in seeds]
            fitted[name] = [
                fit(config, data, seed, store) for seed, store in zip(seeds, stores, strict=True)
            ]
        first = next(iter(configs.values()))
        evaluation_data = prepare_evaluation(
            EvaluationInputs(
                models={one.store.name: one.store for fits in fitted.values() for one in fits},
                features=_features(first),
                interactions=first.interactions,
                interactions_uri=interactions_uri(first, first.interactions),
                items_table=items_table(first, first.items, first.items_columns),
                truth=None,
                text_features=Store.at(first.resolve(first.text_features, "text_features")),
            )
        )
        evaluation_data = with_als(evaluation_data, data)
        ranked = rank(evaluation_data)
    # The rows come in the order of the models, then the baselines.
    by_seed = {name: [ranked.pop(0) for _ in fits] for name, fits in fitted.items()}
    baselines = [c.label for c in evaluation_data.evaluated_models[-len(ranked) :]]
    means = {name: Ranked.mean(seeded) for name, seeded in by_seed.items()}
    means |= dict(zip(baselines, ranked, strict=True))
    resampled = resample({label: one.users for label, one in means.items()})
    models: dict[str, Any] = {label: resampled.summary(label) for label in resampled.mean}
    for name, seeded in by_seed.items():
        for metric, figures in models[name].items():
            figures["seeds"] = [float(one.users[metric].mean()) for one in seeded]
            # Of one seed there is no spread to tell.
            figures["spread"] = float(np.std(figures["seeds"], ddof=len(seeded) > 1))
    names = list(by_seed)
    pairs = [(name, names[0]) for name in names[1:]]
    pairs += [(name, baseline) for name in names for baseline in baselines]
    differences = {f"{one} - {other}": resampled.difference(one, other) for one, other in pairs}
    paired: dict[str, Any] = {pair: {} for pair in differences}
    for metric in COMPARED:
        corrected = holm([p_value(found[metric]["above"]) for found in differences.values()])
        for (pair, found), p in zip(differences.items(), corrected, strict=True):
            paired[pair][metric] = {**found[metric], "p": p}
    return {
        "users": len(evaluation_data.held_out),
        "items": len(evaluation_data.item_ids),
        "models": models,
        "fits": {
            name: {key: [getattr(one, key) for one in fits] for key in FIT}
            for name, fits in fitted.items()
        },
        "paired": paired,
        "groups": by_group(means, evaluation_data.moments, names[0]),
    }


def _require_no_baseline(names: Iterable[str]) -> None:
    """A variant's figures and those of the baseline of its name would be one row."""
    if taken := {LABEL, *UNTRAINED} & {*names}:
        raise InputError(f"Found the variant {min(taken)}, which is the name of a baseline.")


def p_value(above: float) -> float:
    """The two-sided p-value of a difference; of the bootstrap's samples, one may always be beyond.

    Args:
        above: the share of samples with a difference above 0.
    """
    return 2 * max(min(above, 1 - above), 1 / RESAMPLES)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


def _features(config: TrainJob) -> Store:
    return Store.at(config.resolve(config.features, "features"))


def group_table(groups: Groups) -> str:
    """The groups that `measure` gives as text: each model's AUC."""
    lines = []
    for what, found in groups.items():
        names = list(found)
        labels = list(next(iter(found.values()))["models"]) if found else []
        wide = max(map(len, [*labels, what]), default=0) + 2
        counts = {name: next(iter(found[name]["models"].values()))["auc"]["n"] for name in names}
        lines += ["", f"{what:{wide}}" + "".join(f"{f'{n} ({counts[n]:,})':14}" for n in names)]
        for label in labels:
            aucs = [found[name]["models"][label]["auc"]["mean"] for name in names]
            lines.append((f"{label:{wide}}" + "".join(f"{auc:<14.4f}" for auc in aucs)).rstrip())
    return "\n".join(lines)


def table(found: Mapping[str, Any]) -> str:
    """What `measure` gives as text."""
    models, paired = found["models"], found["paired"]
    wide = max(map(len, [*models, *paired])) + 2
    lines = [f"{'':{wide}}" + "".join(f"{name:18}" for name in SHOWN.values()) + "val AUC   s/seed"]
    for label, metrics in models.items():
        line = f"{label:{wide}}"
        for metric in SHOWN:
            figures = metrics[metric]
            several = len(figures.get("seeds", [])) > 1
            spread = f" ± {figures['spread']:.4f}" if several else ""
            line += f"{figures['mean']:.4f}{spread}".ljust(18)
        if fits := found["fits"].get(label):
            known = [auc for auc in fits["val_auc"] if auc is not None]
            line += f"{np.mean(known):.4f}" if known else "     -"
            line += f"{np.mean(fits['seconds']):9.1f}"
        lines.append(line.rstrip())
    lines.append("")
    for pair, metrics in paired.items():
        shown = [
            f"{SHOWN[metric]} {f['mean']:+.4f} [{f['low']:+.4f}, {f['high']:+.4f}] p {f['p']:.3f}"
            for metric, f in metrics.items()
        ]
        lines.append(f"{pair:{wide}}" + "   ".join(shown))
    return "\n".join(lines)


def data_parser(description: str) -> argparse.ArgumentParser:
    """The flags of what trains on one of the data sets."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=SETS)
    parser.add_argument("--source", help="folder of the data set's files; galleries are painted")
    parser.add_argument("--workspace", help="made where it is not there (runs/quality/<data>)")
    parser.add_argument("--features", help="features directory, instead of making it")
    parser.add_argument("--config", help="YAML with keys of jobs/train.py")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


def asked(
    parser: argparse.ArgumentParser, *, config_for_all: bool = True
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """What the command line says, after making data that are not there and setting torch's threads.

    Args:
        parser: the parser that `data_parser` returns.
        config_for_all: whether the file of --config is for all models.

    Returns:
        Its own flags; those of jobs/train.py that all models share; and what stands behind `--`.
    """
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    args, flags = parser.parse_args(given[:cut]), given[cut + 1 :]
    if args.data in SOURCED and not args.source:
        parser.error(f"--source names the folder of {args.data}")
    torch.set_num_threads(args.threads)
    workspace, source, features = (
        path and os.path.abspath(path)
        for path in (args.workspace or f"runs/quality/{args.data}", args.source, args.features)
    )
    base = ["--config", args.config] if args.config and config_for_all else []
    base += ["--workspace", workspace, *SETS[args.data](workspace, source, features)]
    base += ["--features", features] if features else []
    return args, base, flags


def main() -> None:
    parser = data_parser(__doc__ or "")
    parser.add_argument("--variants", help="YAML of names, each with a list of flags")
    args, base, flags = asked(parser)
    variants = load_yaml(Path(args.variants).read_bytes()) if args.variants else None
    try:
        found = measure([*base, *flags], variants or {"model": []}, range(args.seeds))
    except (VisrecError, ArgumentError) as error:
        sys.exit(f"quality: {error}")
    print(
        f"\n{args.data}: {found['users']:,} users held out, {found['items']:,} items, "
        f"{args.seeds} seeds\n\n{table(found)}\n{group_table(found['groups'])}"
    )
    if args.json:
        settings = {**vars(args), "variants": variants, "flags": flags}
        print(json.dumps(plain({"asked": settings, **machine(), **found})))


if __name__ == "__main__":
    main()
