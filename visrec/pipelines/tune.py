"""Searches a space of training keys for the highest validation AUC, with Ray Tune.

visrec tune --local
visrec tune --space tune_spaces/curatornet-wide.yaml --trials 64 --train_best true
visrec train --config runs/demo/sweeps/SWEEP/best.yaml
"""

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util import placement_group_table

from visrec.cli.job import JobConfig, ModelChoice
from visrec.cli.launch import visrec_cause
from visrec.cli.progress_line import track_progress
from visrec.cli.resources import cluster_total, require_resources
from visrec.cli.summary import Summary
from visrec.config import SEEDS, check_fields, digest, plain
from visrec.errors import InputError, VisrecError
from visrec.models import MODELS
from visrec.models.provenance import DataProvenance
from visrec.paths import require_folder_name, shipped
from visrec.pipelines.train import TrainJob, TrainKeys, load_data, training_recipe
from visrec.pipelines.train import check as check_training
from visrec.pipelines.train import main as run_train_job
from visrec.storage.store import Store
from visrec.training.fit import TrainingRecipe
from visrec.tuning.records import (
    STATUSES,
    TrialRecord,
    best_trial,
    plot_sweep,
    read_records,
    trials_table,
)
from visrec.tuning.runner import Sweep, run_sweep
from visrec.tuning.search import DEFAULT_TRIAL, has_optuna
from visrec.tuning.spaces import Space, check_space, load_space, with_values
from visrec.yaml_text import dump_yaml

_RELEASE_S = 60.0  # Ray takes some seconds to free the resources of ended trials


@dataclass(frozen=True, kw_only=True)
class TuneJob(TrainKeys, JobConfig):
    """A search for the best training keys.

    Attributes:
        space: YAML file with the keys to search and the values of each; by default the file of the
            model in tune_spaces/.
        trials: number of configurations to try. The first one is the given configuration. The same
            command with a larger number continues the sweep.
        scheduler: asha stops trials that do badly after a ninth or a third of their epochs; none
            trains all of them to the end.
        search: random samples each trial independently; optuna learns from earlier trials (it needs
            pip install 'visrec[tune]').
        seed: seed of the sampled values.
        sweep: name of the sweep; by default the name of the model and a digest of data and
            settings, so that the same command continues the same sweep.
        concurrency: trials at the same time; by default as many as fit into this cluster's CPUs and
            GPUs.
        train_best: train the best configuration as `visrec train` does, and keep the model.
    """

    space: str | None = None
    trials: int = 16
    scheduler: Literal["asha", "none"] = "asha"
    search: Literal["random", "optuna"] = "random"
    seed: int = 0
    sweep: str | None = None
    concurrency: int | None = None
    train_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweep is not None:
            require_folder_name(self.sweep, "sweep")
        check_fields(self, "", trials="[1, 1000000]", seed=SEEDS, concurrency="[1, 65536]")


def check(config: TuneJob) -> None:
    base = train_job(config)
    _load_space(config, base, training_recipe(base))
    check_training(base)


def main(config: TuneJob, summary: Summary) -> None:
    free_before = _free_cpus()
    base = train_job(config)
    recipe = training_recipe(base)
    space = _load_space(config, base, recipe)
    sweeps = Store.at(config.resolve(None, "sweeps"))
    sweeps.check_writable()
    loaded = load_data(base, summary)
    if not loaded.has_validation:
        raise InputError(
            f"Found no user to validate with. {' '.join(loaded.notes)} Expected some: set "
            "--split.validation true, or add interactions."
        )
    store = _open_sweep(config, recipe, space, loaded.provenance, sweeps)
    recorded = read_records(store, config.trials)
    concurrency = _concurrency(config)

    summary.has_written = True
    _silence_ray_tune(config)
    with track_progress("tune", config.trials, summary, "trials", done=len(recorded)) as actor:
        sweep = Sweep(
            recipe=recipe,
            space=space,
            data=loaded.data,
            trials=config.trials,
            scheduler=config.scheduler,
            search=config.search,
            seed=config.seed,
            resources=config.resources,
            concurrency=concurrency,
            store=store,
            recorded=recorded,
            progress_actor=actor,
        )
        records, errors = run_sweep(sweep)
    with summary.phase("release"):
        free_after = _wait_for_release(config, free_before)
    best = best_trial(records)
    if best is None:
        raise VisrecError(_failure(records, errors))
    best_config = _with_recipe(base, with_values(recipe, best.values))
    with summary.phase("write"):
        _write_results(store, records, space, best_config)
    free = {"CPUs free": f"{free_before:g} before, {free_after:g} after"}
    summary.rows = _rows(store, records, recorded, best) | loaded.read_counts | free
    if config.train_best:
        _train_best(best_config, summary)


def _load_space(config: TuneJob, base: TrainJob, recipe: TrainingRecipe) -> Space:
    """The search space.

    Raises:
        InputError: the model cannot be trained with one of its values, or cannot be tuned at all.
    """
    _require_tunable(config, recipe)
    space = load_space(config.space or shipped(f"tune_spaces/{recipe.model_name}.yaml"))
    check_space(space, recipe)
    for key, domain in space.items():
        for value in domain.checked_values:
            # A TrainJob also refuses batches that the workers cannot share equally.
            _with_recipe(base, with_values(recipe, {key: value}))
    return space


def _require_tunable(config: TuneJob, recipe: TrainingRecipe) -> None:
    """Refuses a model that trains no weights, and a search that is not installed."""
    if MODELS[recipe.model_name].trains_on == "nothing":
        raise InputError(
            f"Found --model.name {recipe.model_name}, which trains no weights; expected a model "
            "that does."
        )
    if config.search == "optuna" and not has_optuna():
        raise InputError(
            "Found --search optuna, but Optuna is not installed; expected it: pip install "
            "'visrec[tune]'. --search random works without it."
        )


def _write_results(
    store: Store, records: list[TrialRecord], space: Space, best_config: TrainJob
) -> None:
    """Writes the table of trials, the best configuration and the plot."""
    store.write_table("trials.parquet", trials_table(records, space))
    store.write("best.yaml", as_yaml(best_config).encode())
    store.write("sweep.png", plot_sweep(records, space))


def _train_best(best_config: TrainJob, summary: Summary) -> None:
    """Trains the best configuration as `visrec train` does, and adds its result to the summary."""
    training = Summary("train", has_written=True)
    run_train_job(best_config, training)
    summary.phases |= {f"train best: {phase}": s for phase, s in training.phases.items()}
    summary.rows |= {key: training.rows[key] for key in ("model", "model at", "digest")}
    summary.rows["validation AUC of the model"] = training.rows["validation AUC"]


def train_job(config: TuneJob) -> TrainJob:
    """The configuration of trial 0, as a job for `visrec train`."""
    return TrainJob(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainJob)})


def as_yaml(config: TrainJob) -> str:
    """A training job as YAML, without the keys on where it runs and how it shows errors."""
    keys = {name: value for name, value in plain(config).items() if name not in ("local", "debug")}
    model = keys["model"]
    keys["model"] = {"name": model["name"], **model["config"]}
    return dump_yaml(keys)


def _open_sweep(
    config: TuneJob,
    recipe: TrainingRecipe,
    space: Space,
    provenance: DataProvenance,
    sweeps: Store,
) -> Store:
    """The directory of the sweep, which holds the digest of its settings.

    The number of trials and the resources are not part of the digest, so they may change when a
    sweep continues.

    Raises:
        InputError: there is a sweep of this name with other data or settings.
    """
    settings = (recipe, space, config.scheduler, config.search, config.seed)
    settings_digest = digest(provenance.to_dict(), *settings)
    store = sweeps / (config.sweep or f"{recipe.model_name}-{settings_digest[:12]}")
    content = settings_digest.encode()
    if not store.create("settings_digest", content) and store.read("settings_digest") != content:
        raise InputError(
            f"{store.root} is a sweep of other data or with other settings than these; expected "
            f"the same, or a new name. Change --sweep {store.name}, or leave it out."
        )
    return store


def _concurrency(config: TuneJob) -> int:
    """Trials at the same time: as configured, or as many as fit into the cluster now."""
    per_trial = config.resources.total
    if config.concurrency:
        wanted = {name: n * config.concurrency for name, n in per_trial.items()}
        require_resources(wanted, config, "concurrency")
        return config.concurrency
    require_resources(per_trial, config, "resources.workers")
    fitting = min(int(cluster_total(name) // n) for name, n in per_trial.items())
    return max(1, min(fitting, config.trials))


def _silence_ray_tune(config: TuneJob) -> None:
    """Turns off Ray Tune's own files, tables, stack traces and handling of Ctrl-C."""
    for name in ("AUTO_CALLBACK_LOGGERS", "SIGINT_HANDLER"):
        os.environ.setdefault(f"TUNE_DISABLE_{name}", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # The error of a trial is in its record, and the job's own message has the first one.
    logging.getLogger("ray.tune").setLevel(logging.ERROR if config.debug else logging.CRITICAL)
    logging.getLogger("optuna").setLevel(logging.WARNING)


def _free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def _wait_for_release(config: TuneJob, free_before: float) -> float:
    """Waits until everything that the trials held is free again; returns the number of free CPUs.

    Raises:
        VisrecError: something is still held after a minute. On a cluster, where other jobs take
            CPUs too, only this job's placement groups count.
    """
    end = time.monotonic() + _RELEASE_S
    while True:
        free, groups = _free_cpus(), _placement_groups_of_this_job()
        if free >= free_before and not groups:
            return free
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    if groups or config.local:
        raise VisrecError(
            f"The sweep is over, but {free_before - free:g} CPUs and {len(groups)} placement "
            f"groups are still held after {_RELEASE_S:.0f} s; expected none. The same command "
            "continues from the records of the trials."
        )
    return free


def _placement_groups_of_this_job() -> list[str]:
    """Ids of this job's placement groups that are not removed; they end in the id of the job."""
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return [name for name, group in groups if name.endswith(job) and group["state"] != "REMOVED"]


def _failure(records: list[TrialRecord], errors: dict[int, Exception]) -> str:
    """The message for a sweep in which no trial succeeded."""
    first = records[0]
    cause = visrec_cause(errors[first.number]) if first.number in errors else None
    reason = cause or first.error or "its loss or its weights became NaN or infinite"
    return f"All {len(records)} trials failed or diverged; trial {first.number}: {reason}"


def _with_recipe(config: TrainJob, recipe: TrainingRecipe) -> TrainJob:
    return dataclasses.replace(
        config,
        model=ModelChoice(recipe.model_name, recipe.model_config),
        train=recipe.train,
        sampling=recipe.sampling,
    )


def _rows(
    store: Store, records: list[TrialRecord], resumed: dict[int, TrialRecord], best: TrialRecord
) -> dict[str, Any]:
    """The rows of the summary."""
    by_status = {status: sum(r.status == status for r in records) for status in STATUSES}
    default = next((record for record in records if record.number == DEFAULT_TRIAL), None)
    return {
        "sweep": store.name,
        "trials": len(records),
        **{status: n for status, n in by_status.items() if n},
        "from earlier runs": len(resumed),
        "best validation AUC": round(best.auc, 4),
        "of the default": round(default.auc, 4) if default and default.is_eligible else None,
        "best trial": best.number,
        **{f"  {key}": value for key, value in best.values.items()},
        "epochs of the best": len(best.history),
        "sweep at": store.root,
    }
