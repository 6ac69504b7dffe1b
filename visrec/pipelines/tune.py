"""Which keys of training do best: Ray Tune searches a space for the highest validation AUC.

python jobs/tune.py --local
python jobs/tune.py --space tune_spaces/curatornet-wide.yaml --trials 64 --refit true
python jobs/train.py --config runs/demo/sweeps/NAME/best.yaml
"""

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import ray
import yaml
from ray.util import placement_group_table

from visrec.cli.launch import (
    JobConfig,
    ModelChoice,
    Summary,
    cluster_has,
    own_cause,
    require_resources,
)
from visrec.cli.progress import follow
from visrec.config import SEEDS, check_fields, digest, plain
from visrec.errors import InputError, VisrecError
from visrec.models import MODELS
from visrec.paths import require_folder_name
from visrec.pipelines.train import TrainJob, TrainKeys, of_one_model, read, recipe_of
from visrec.pipelines.train import check as check_training
from visrec.pipelines.train import main as train
from visrec.storage.store import Store
from visrec.training.fit import TrainingRecipe
from visrec.tuning.records import STATUSES, Record, best_of, plot, read_records, table
from visrec.tuning.runner import Sweep, run_sweep
from visrec.tuning.search import DEFAULT, has_optuna
from visrec.tuning.spaces import Space, check_space, load_space, with_values

_RELEASE_S = 60.0  # Ray takes seconds to take back what ended trials held


@dataclass(frozen=True, kw_only=True)
class TuneJob(TrainKeys, JobConfig):
    """A search for the best keys of training.

    Attributes:
        space: YAML file of the keys that are searched, and what each may be; by default the
            model's own in tune_spaces/.
        trials: how many configurations are tried; the first is the one given, as it is. More of
            them later go on with the same sweep.
        scheduler: asha stops trials that stand badly after a ninth or a third of their epochs;
            none trains all to their end.
        search: random draws every trial by itself; optuna learns from those before (it comes with
            pip install 'visrec[tune]').
        seed: of the drawn values.
        sweeps: where the sweep's directory goes; by default sweeps of the workspace.
        name: name of the sweep; by default made of the model's name and of a digest of data and
            settings, so that the same command goes on with the same sweep.
        concurrency: trials at a time; by default as many as this cluster's CPUs and GPUs hold.
        refit: train the best configuration as jobs/train.py does, and keep the model.
    """

    space: str | None = None
    trials: int = 16
    scheduler: Literal["asha", "none"] = "asha"
    search: Literal["random", "optuna"] = "random"
    seed: int = 0
    sweeps: str | None = None
    name: str | None = None
    concurrency: int | None = None
    refit: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None:
            require_folder_name(self.name, "name")
        check_fields(self, "", trials="[1, 1000000]", seed=SEEDS, concurrency="[1, 65536]")


def check(config: TuneJob) -> None:
    base = train_job(config)
    _space(config, base, recipe_of(base))
    check_training(base)


def main(config: TuneJob, summary: Summary) -> None:
    before = _free_cpus()
    base = train_job(config)
    recipe = recipe_of(base)
    space = _space(config, base, recipe)
    features = Store.at(config.resolve(config.features, "features"))
    sweeps = Store.at(config.resolve(config.sweeps, "sweeps"))
    sweeps.check_writable()
    data, facts = read(base, features, summary)
    if not facts["counts"]["validation users"]:
        raise InputError(
            f"Found no user to validate with. {' '.join(facts['notes'])} Expected some: set "
            "--split.validation true, or add interactions."
        )
    name, store = _start_or_go_on(config, recipe, space, facts["provenance"], sweeps)
    recorded = read_records(store, config.trials)
    concurrency = _concurrency(config)

    summary.has_written = True
    _keep_ray_tune_quiet(config)
    with follow("tune", config.trials, summary, "trials", done=len(recorded)) as tally:
        sweep = Sweep(
            recipe=recipe,
            space=space,
            data=data,
            trials=config.trials,
            scheduler=config.scheduler,
            search=config.search,
            seed=config.seed,
            resources=config.resources,
            concurrency=concurrency,
            store=store,
            recorded=recorded,
            tally=tally,
        )
        records, errors = run_sweep(sweep)
    with summary.phase("release"):
        after = _released(config, before)
    best = best_of(records)
    if best is None:
        raise VisrecError(_first_cause(records, errors))
    chosen = _with(base, with_values(recipe, best.values))
    with summary.phase("write"):
        _write(store, records, space, chosen)
    free = {"CPUs free": f"{before:g} before, {after:g} after"}
    summary.rows = _rows(name, store, records, recorded, best) | facts["rows"] | free
    if config.refit:
        _refit(chosen, summary)


def _space(config: TuneJob, base: TrainJob, recipe: TrainingRecipe) -> Space:
    """What is searched.

    Raises:
        InputError: it is nothing that this model, or workers that share a batch, can be trained
            with.
    """
    _check(config, recipe)
    space = load_space(config.space or f"tune_spaces/{recipe.model_name}.yaml")
    check_space(space, recipe)
    for key, domain in space.items():
        for value in domain.ends:
            _with(base, with_values(recipe, {key: value}))  # refuses what workers cannot share
    return space


def _write(store: Store, records: list[Record], space: Space, chosen: TrainJob) -> None:
    """The sweep's table, the best configuration and the picture."""
    store.write_table("trials.parquet", table(records, space))
    store.write("best.yaml", as_yaml(chosen).encode())
    store.write("sweep.png", plot(records, space))


def _refit(chosen: TrainJob, summary: Summary) -> None:
    """Trains the best configuration as jobs/train.py does, and adds what it said to the summary."""
    refit = Summary("train", has_written=True)
    train(chosen, refit)
    summary.phases |= {f"refit: {phase}": s for phase, s in refit.phases.items()}
    summary.rows |= {key: refit.rows[key] for key in ("model", "model at", "digest")}
    summary.rows["validation AUC of the refit"] = refit.rows["validation AUC"]


def train_job(config: TuneJob) -> TrainJob:
    """The training that trial 0 does, as jobs/train.py would have it."""
    return TrainJob(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainJob)})


def as_yaml(config: TrainJob) -> str:
    """A training as YAML for jobs/train.py; where it runs and how errors are shown is left out."""
    keys = {name: value for name, value in plain(config).items() if name not in ("local", "debug")}
    model = keys["model"]
    keys["model"] = {"name": model["name"], **model["config"]}
    return yaml.safe_dump(keys, sort_keys=False)


def _check(config: TuneJob, recipe: TrainingRecipe) -> None:
    """Refuses what cannot be searched, before anything starts."""
    if MODELS[recipe.model_name].trains_on == "nothing":
        raise InputError(
            f"Found --model.name {recipe.model_name}, which trains nothing; expected a model "
            "that is trained."
        )
    if config.search == "optuna" and not has_optuna():
        raise InputError(
            "Found --search optuna without Optuna; expected it installed: pip install "
            "'visrec[tune]'. --search random needs nothing more."
        )


def _start_or_go_on(
    config: TuneJob, recipe: TrainingRecipe, space: Space, provenance: object, sweeps: Store
) -> tuple[str, Store]:
    """The sweep's name and directory, marked with its settings.

    More trials than before are no other settings, nor is what they run on: the sweep goes on.
    """
    mark = digest(provenance, recipe, space, config.scheduler, config.search, config.seed)
    name = config.name or f"{recipe.model_name}-{mark[:12]}"
    store = sweeps / name
    if not store.create("settings", mark.encode()) and store.read("settings") != mark.encode():
        raise InputError(
            f"{store.root} is a sweep of other data or with other settings than these; expected "
            f"the same, or a new name. Change --name {name}, or leave it out."
        )
    return name, store


def _concurrency(config: TuneJob) -> int:
    """Trials at a time: what was asked for, or what the cluster holds now."""
    wanted = of_one_model(config.resources)
    if config.concurrency:
        times = {name: n * config.concurrency for name, n in wanted.items()}
        require_resources(times, config, "concurrency")
        return config.concurrency
    require_resources(wanted, config, "resources.workers")
    held = min(int(cluster_has(name) // n) for name, n in wanted.items())
    return max(1, min(held, config.trials))


def _keep_ray_tune_quiet(config: TuneJob) -> None:
    """No files, tables or stack traces of Ray Tune's own, and an interrupt ends the job at once."""
    for name in ("AUTO_CALLBACK_LOGGERS", "SIGINT_HANDLER"):
        os.environ.setdefault(f"TUNE_DISABLE_{name}", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # A trial's error is told in its record; the job's own paragraph says the first.
    logging.getLogger("ray.tune").setLevel(logging.ERROR if config.debug else logging.CRITICAL)
    logging.getLogger("optuna").setLevel(logging.WARNING)


def _free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def _released(config: TuneJob, before: float) -> float:
    """The CPUs that are free once all that the trials held is given back.

    Raises:
        VisrecError: it is not. On a cluster, where others take CPUs too, only placement groups of
            this job are held against it.
    """
    end = time.monotonic() + _RELEASE_S
    while True:
        free, groups = _free_cpus(), _own_placement_groups()
        if free >= before and not groups:
            return free
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    if groups or config.local:
        raise VisrecError(
            f"The sweep is over, and {before - free:g} CPUs and {len(groups)} placement groups are "
            f"still held after {_RELEASE_S:.0f} s; expected none. The same command goes on from "
            "the trials' records."
        )
    return free


def _own_placement_groups() -> list[str]:
    """Those of this job that are not removed; an id ends in that of the job which made it."""
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return [name for name, group in groups if name.endswith(job) and group["state"] != "REMOVED"]


def _first_cause(records: list[Record], errors: dict[int, Exception]) -> str:
    """Why no trial came to anything."""
    first = records[0]
    cause = (first.number in errors and own_cause(errors[first.number])) or first.error
    said = cause or "its loss or its weights became no numbers"
    return f"All {len(records)} trials failed or diverged; trial {first.number}: {said}"


def _with(config: TrainJob, recipe: TrainingRecipe) -> TrainJob:
    return dataclasses.replace(
        config,
        model=ModelChoice(recipe.model_name, recipe.model_config),
        train=recipe.train,
        sampling=recipe.sampling,
    )


def _rows(
    name: str, store: Store, records: list[Record], resumed: dict[int, Record], best: Record
) -> dict[str, Any]:
    """The lines of the summary."""
    of = {status: sum(r.status == status for r in records) for status in STATUSES}
    default = next((record for record in records if record.number == DEFAULT), None)
    return {
        "sweep": name,
        "trials": len(records),
        **{status: n for status, n in of.items() if n},
        "from earlier runs": len(resumed),
        "best validation AUC": round(best.auc, 4),
        "of the default": round(default.auc, 4) if default and default.counts else None,
        "best trial": best.number,
        **{f"  {key}": value for key, value in best.values.items()},
        "epochs of the best": len(best.history),
        "sweep at": store.root,
    }
