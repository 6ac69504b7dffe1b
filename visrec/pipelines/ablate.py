"""What `jobs/evaluate.py --ablate true` trains: a model again, each time with other triples."""

import dataclasses

import ray

from visrec.cli.job import ModelChoice
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.models import MODELS
from visrec.models.artifact import load_artifact
from visrec.pipelines.train import TrainJob, train, training_inputs
from visrec.sampling.guidelines import GUIDELINES
from visrec.sampling.triples import SamplingConfig, TripleSampler
from visrec.storage.store import Store
from visrec.training.data import TrainingInputs, load_training_data
from visrec.training.loop import TrainConfig

SIX = tuple(name for name in GUIDELINES if name != "random")


def variants(sampling: SamplingConfig, possible: tuple[str, ...]) -> dict[str, SamplingConfig]:
    """Other ways to draw the triples, by name: random ones, all guidelines, all but one of them,
    and the positive kept in the profile, or left out where it was kept.

    Args:
        sampling: how the model's own were drawn.
        possible: the guidelines by which a triple can be drawn from the data.
    """

    def drawn_by(names: tuple[str, ...]) -> SamplingConfig:
        return dataclasses.replace(sampling, guidelines=dict.fromkeys(names, 1.0))

    kept = not sampling.keep_positive_in_profile
    others = {"random": drawn_by(("random",)), "guidelines": drawn_by(possible)}
    if len(possible) > 1:
        for left_out in possible:
            rest = tuple(name for name in possible if name != left_out)
            others[f"without-{left_out}"] = drawn_by(rest)
    name = "positive-in-profile" if kept else "positive-out-of-profile"
    others[name] = dataclasses.replace(sampling, keep_positive_in_profile=kept)
    return {name: config for name, config in others.items() if config != sampling}


def train_variants(model: Store, own: TrainJob, summary: Summary) -> list[Store]:
    """Trains a model's variants, those that are not there yet, and returns where they are.

    Args:
        model: the trained model's directory.
        own: its workspace, session, features, items and interactions; the rest of its settings is
            kept with the model.
        summary: of the job.

    Raises:
        InputError: the model does not train on triples.
    """
    artifact = load_artifact(model)
    if MODELS[artifact.name].trains_on != "triples":
        raise InputError(
            f"Found a {artifact.name} at {model.root}; expected a model that trains on triples "
            "for --ablate. Name another with --model."
        )
    provenance = artifact.provenance
    own = dataclasses.replace(
        own,
        model=ModelChoice(artifact.name, artifact.config),
        split=provenance.data.split,
        sampling=SamplingConfig(**provenance.sampling),
        train=TrainConfig(**provenance.train),
    )
    every = dataclasses.replace(own.sampling, guidelines=dict.fromkeys(SIX, 1.0))
    features = Store.at(own.resolve(own.features, "features"))
    inputs = training_inputs(dataclasses.replace(own, sampling=every), features)
    reasons = ray.get(ray.remote(_impossible).remote(inputs, own.sampling))
    for name, reason in reasons.items():
        print(f"ablate: the guideline {name} is left out. {reason}", flush=True)
    possible = tuple(name for name in SIX if name not in reasons)
    stores = []
    for name, sampling in variants(own.sampling, possible).items():
        model_id = f"{artifact.model_id}-{name}"
        print(f"ablate: {name}", flush=True)
        config = dataclasses.replace(own, model_id=model_id, sampling=sampling)
        stores.append(train(config, summary).store)
    return stores


def _impossible(inputs: TrainingInputs, sampling: SamplingConfig) -> dict[str, str]:
    """The guidelines by which no triple can be drawn, and why."""
    index = load_training_data(inputs).sampling_index
    reasons = {}
    for name in SIX:
        try:
            TripleSampler(index, dataclasses.replace(sampling, guidelines={name: 1.0}), seed=0)
        except InputError as error:
            reasons[name] = str(error)
    return reasons
