"""Trains variants of a model that differ only in how triples are sampled, for `visrec evaluate
--ablate true`."""

import dataclasses

from visrec.cli.job import ModelChoice
from visrec.cli.output import say
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.models import MODELS
from visrec.models.artifact import load_artifact
from visrec.pipelines.train import TrainJob, train, training_inputs
from visrec.sampling.guidelines import GUIDELINES
from visrec.sampling.triples import SamplingConfig, TripleSampler
from visrec.storage.store import Store
from visrec.tasks import call
from visrec.training.data import TrainingInputs, load_training_data
from visrec.training.loop import TrainConfig

PAPER_GUIDELINES = tuple(name for name in GUIDELINES if name != "random")


def sampling_variants(
    sampling: SamplingConfig, possible: tuple[str, ...]
) -> dict[str, SamplingConfig]:
    """Other ways to sample the triples, by name.

    Random triples; all guidelines; all guidelines but one; and the positive item kept in the
    profile, or left out if the model kept it. The model's own way is not among them.

    Args:
        sampling: how the model's triples were sampled.
        possible: the guidelines that can sample a triple from the data.
    """

    def by_guidelines(names: tuple[str, ...]) -> SamplingConfig:
        return dataclasses.replace(sampling, guidelines=dict.fromkeys(names, 1.0))

    keep = not sampling.keep_positive_in_profile
    variants = {"random": by_guidelines(("random",)), "guidelines": by_guidelines(possible)}
    if len(possible) > 1:
        for left_out in possible:
            others = tuple(name for name in possible if name != left_out)
            variants[f"without-{left_out}"] = by_guidelines(others)
    name = "positive-in-profile" if keep else "positive-out-of-profile"
    variants[name] = dataclasses.replace(sampling, keep_positive_in_profile=keep)
    return {name: variant for name, variant in variants.items() if variant != sampling}


def train_variants(model: Store, config: TrainJob, summary: Summary) -> list[Store]:
    """Trains those variants of a model that do not exist yet; returns the directories of all.

    Args:
        model: the trained model's directory.
        config: workspace, session, features, items and interactions; all other settings come from
            the model's provenance.
        summary: the job's summary.

    Raises:
        InputError: the model does not train on triples.
    """
    artifact = load_artifact(model)
    require_triples(artifact.name, f"at {model.root}")
    provenance = artifact.provenance
    config = dataclasses.replace(
        config,
        model=ModelChoice(artifact.name, artifact.config),
        split=provenance.data.split,
        item_features=provenance.data.item_features,
        sampling=SamplingConfig(**provenance.sampling),
        train=TrainConfig(**provenance.train),
    )
    all_guidelines = dataclasses.replace(
        config.sampling, guidelines=dict.fromkeys(PAPER_GUIDELINES, 1.0)
    )
    features = Store.at(config.resolve(config.features, "features"))
    inputs = training_inputs(dataclasses.replace(config, sampling=all_guidelines), features)
    reasons = call(_impossible_guidelines, inputs, config.sampling)
    for name, reason in reasons.items():
        say(f"ablate: the guideline {name} is left out. {reason}")
    possible = tuple(name for name in PAPER_GUIDELINES if name not in reasons)
    stores = []
    for name, sampling in sampling_variants(config.sampling, possible).items():
        model_id = f"{artifact.model_id}-{name}"
        say(f"ablate: {name}")
        variant = dataclasses.replace(config, model_id=model_id, sampling=sampling)
        stores.append(train(variant, summary).store)
    return stores


def require_triples(model_name: str, where: str) -> None:
    """Raises an error if a model does not train on triples."""
    if MODELS[model_name].trains_on != "triples":
        raise InputError(
            f"Found a {model_name} {where}; expected a model that trains on triples for --ablate. "
            "Name another with --model.",
            key="ablate",
        )


def _impossible_guidelines(inputs: TrainingInputs, sampling: SamplingConfig) -> dict[str, str]:
    """The guidelines that cannot sample any triple, each with the reason."""
    index = load_training_data(inputs).sampling_index
    reasons = {}
    for name in PAPER_GUIDELINES:
        try:
            TripleSampler(index, dataclasses.replace(sampling, guidelines={name: 1.0}), seed=0)
        except InputError as error:
            reasons[name] = str(error)
    return reasons
