"""What evaluation compares: trained models and baselines, prepared over one catalogue and split."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.evaluation.list_metrics import ItemFacts, novelty
from visrec.evaluation.oracle import Oracle, read_oracle
from visrec.evaluation.table import ORACLE
from visrec.interactions.log import InteractionLog, Reading, read_log
from visrec.interactions.split import HeldOut, RecordedSplit, SplitConfig, recorded_split
from visrec.jagged import Jagged
from visrec.models import MODELS
from visrec.models.arrays import Arrays
from visrec.models.artifact import TIMES, Artifact, load_artifact
from visrec.models.base import Catalogue, Sizes
from visrec.models.scorers import Scorer
from visrec.models.visrank import VisRankConfig
from visrec.recommend.inputs import load_catalogue, trained_users
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of the table: a trained one from its directory, or one that needs no training.

    Args:
        label: its name in the table.
        model: its entry in `MODELS`; None for the oracle.
        config: its config.
        store: its directory, for a trained one.
    """

    label: str
    model: str | None
    config: Any = None
    store: Store | None = None


BASELINES = (
    EvaluatedModel("visrank-max", "visrank", VisRankConfig(mode="max")),
    EvaluatedModel("visrank-mean", "visrank", VisRankConfig(mode="mean")),
    EvaluatedModel("visrank-mean_top_k", "visrank", VisRankConfig(mode="mean_top_k")),
    EvaluatedModel("popularity", "popularity", MODELS["popularity"].Config()),
    EvaluatedModel("random", "random", MODELS["random"].Config()),
)


@dataclass(frozen=True)
class Cost:
    """What a model costs, besides the scoring.

    Args:
        parameters: numbers that training moves.
        train_s: seconds that training them took; None where nobody measured.
    """

    parameters: int
    train_s: float | None


@dataclass(frozen=True)
class EvaluationInputs:
    """Where evaluation reads.

    Args:
        models: the trained models' directories, by their names in the table; of a single one, ""
            stands for the name of the model.
        features: the features directory.
        interactions: which of them count.
        interactions_uri: where they are.
        items_uri: the items table, or None.
        truth: planted truth, or None.
    """

    models: Mapping[str, Store]
    features: Store
    interactions: InteractionsConfig
    interactions_uri: str
    items_uri: str | None
    truth: Store | None


@dataclass(frozen=True)
class EvaluationData:
    """Held-out users, and what each contestant makes of the items; shared by the workers of a node.

    Args:
        item_ids: (N,) sorted.
        user_ids: (E,) the held-out users.
        held: their profiles and held-out items.
        item_facts: what the lists are measured by.
        evaluated_models: the models, the trained ones first.
        arrays: each one's item arrays.
        user_rows: each one's (E,) trained user rows, -1 for users it has not seen.
        costs: of the trained ones.
        missing: rows that training held out and that are not in the interactions now.
        reading: what became of the rows of the interactions.
    """

    item_ids: pa.LargeStringArray
    user_ids: pa.LargeStringArray
    held: HeldOut
    item_facts: ItemFacts
    evaluated_models: Sequence[EvaluatedModel]
    arrays: Mapping[str, Arrays]
    user_rows: Mapping[str, npt.NDArray[np.int64]]
    costs: Mapping[str, Cost]
    missing: int
    reading: Reading = field(default_factory=Reading)


def prepare_evaluation(inputs: EvaluationInputs) -> EvaluationData:
    """Reads everything once and lets each model see the items.

    The items are those of the training that still have features, and the interactions end where the
    training's did: the models are judged on what their training held out, whatever came later.

    Raises:
        InputError: something is missing, does not fit a model, or nobody is held out; or the models
            do not belong in one table.
    """
    stores = list(inputs.models.values())
    artifacts = [load_artifact(store) for store in stores]
    labels = [label or artifacts[0].name for label in inputs.models]
    _require_rows_of_their_own(labels)
    _require_held_out(artifacts, stores)
    _require_alike(artifacts)
    item_ids, catalogue = _catalogue_of_training(artifacts[0], inputs)
    inputs.interactions.require_min_rating(
        artifacts[0].provenance["interactions"]["min_rating"], f"the model {artifacts[0].model_id}"
    )
    log = read_log(inputs.interactions, inputs.interactions_uri, item_ids)
    found = _recorded_split(artifacts[0], log, item_ids, inputs.interactions_uri)
    held, known = found.held, found.known
    user_ids = log.user_ids.take(pa.array(held.user_E))
    evaluated_models, arrays, rows, costs = [], {}, {}, {}
    for label, artifact, store in zip(labels, artifacts, stores, strict=True):
        evaluated_models.append(EvaluatedModel(label, artifact.name, artifact.config, store))
        costs[label] = _cost(artifact, store)
        if artifact is not artifacts[0]:
            _, catalogue = _catalogue_of_training(artifact, inputs)
        arrays[label] = artifact.model.item_arrays(catalogue)
        rows[label] = trained_users(artifact, user_ids)
    # Baselines know all that comes before the test basket, as the profiles do.
    of_model = _baseline_arrays(catalogue.feature_ND, known)
    for baseline in BASELINES:
        if baseline.label not in arrays:
            evaluated_models.append(baseline)
            arrays[baseline.label] = of_model[str(baseline.model)]
            rows[baseline.label] = np.full(len(user_ids), -1)
    if inputs.truth:
        evaluated_models.append(EvaluatedModel(ORACLE, None))
        arrays[ORACLE], rows[ORACLE] = read_oracle(inputs.truth, item_ids, user_ids)
    takers_N = np.bincount(known.values, minlength=len(item_ids))
    facts = ItemFacts(
        unit_ND=of_model["visrank"]["unit"],
        novelty_N=novelty(takers_N, int((known.lengths > 0).sum())),
        cold_N=takers_N == 0,
    )
    return EvaluationData(
        item_ids,
        user_ids,
        held,
        facts,
        evaluated_models,
        arrays,
        rows,
        costs,
        found.missing,
        log.reading,
    )


def _recorded_split(
    artifact: Artifact, log: InteractionLog, item_ids: pa.LargeStringArray, uri: str
) -> RecordedSplit:
    """What the training of a model held out, in the interactions as they are now."""
    pairs = artifact.held_out
    if artifact.provenance["interactions"]["digest"] is None:
        raise InputError(
            f"{artifact.model_id} was trained without interactions, so nothing was held out by "
            "which it may be judged. Train it with them (--interactions.path of jobs/train.py), "
            "and evaluate again."
        )
    if not len(pairs):
        raise InputError(
            f"The training of {artifact.model_id} held nothing out: none of its users had two "
            "baskets or rows marked in an evaluation column. Train with interactions that have, or "
            "with --split.by item, and evaluate again."
        )
    last = artifact.provenance["interactions"]["last_timestamp"]
    found = recorded_split(log, item_ids, pairs, last)
    if not len(found.held):
        raise InputError(
            f"None of the {len(pairs)} rows that the training of {artifact.model_id} held out, "
            f"such as {pairs.slice(0, 1).to_pylist()[0]}, is in {uri}. A model is judged only by "
            "what its training did not see: expected interactions with these rows "
            "(--interactions.path, --interactions.as_of), or train again."
        )
    return found


def _catalogue_of_training(
    artifact: Artifact, inputs: EvaluationInputs
) -> tuple[pa.LargeStringArray, Catalogue]:
    """The items of the training that still have features, as the model sees them."""
    item_ids, catalogue = load_catalogue(artifact, inputs.features, inputs.items_uri)
    kept_N = catalogue.trained_N >= 0
    if kept_N.all():
        return item_ids, catalogue
    category_N = catalogue.category_N
    return item_ids.filter(pa.array(kept_N)), Catalogue(
        catalogue.feature_ND[kept_N],
        catalogue.trained_N[kept_N],
        None if category_N is None else category_N[kept_N],
    )


def _baseline_arrays(feature_ND: npt.NDArray[Any], known: Jagged) -> dict[str, Arrays]:
    """The item arrays of each model among the baselines, fitted to what is known.

    One for all modes of VisRank, which differ in how they score alone.
    """
    catalogue = Catalogue(feature_ND, trained_N=np.arange(len(feature_ND)))
    sizes = Sizes(items=len(feature_ND), users=0, feature_dim=feature_ND.shape[1])
    arrays = {}
    for name, config in {str(b.model): b.config for b in BASELINES}.items():
        model = MODELS[name](config, sizes)
        model.fit(catalogue, known)
        arrays[name] = model.item_arrays(catalogue)
    return arrays


def _cost(artifact: Artifact, store: Store) -> Cost:
    module: Any = artifact.model
    count = sum(parameter.numel() for parameter in module.parameters())
    known = store.exists(TIMES)
    return Cost(count, float(store.read_json(TIMES)["train_s"]) if known else None)


def _require_rows_of_their_own(labels: Sequence[str]) -> None:
    if len(labels) == 1:
        return
    taken = {ORACLE, *(baseline.label for baseline in BASELINES)} & set(labels)
    if taken:
        raise InputError(
            f"Found {min(taken)!r} for more than one row of the table; expected names in --models "
            "that are no baseline's."
        )


def _require_held_out(artifacts: Sequence[Artifact], stores: Sequence[Store]) -> None:
    for artifact, store in zip(artifacts, stores, strict=True):
        if not artifact.provenance["split"]["test"]:
            raise InputError(
                f"The model at {store.root} was trained with --split.test false: it has seen what "
                "it would be judged by. Train one with --split.test true to evaluate."
            )


def _require_alike(artifacts: Sequence[Artifact]) -> None:
    """One table compares models that had the same to learn from, and the same kept from them."""
    first = artifacts[0]
    wanted = _provenance(first)
    for other in artifacts[1:]:
        for what, found in _provenance(other).items():
            if found != wanted[what]:
                raise InputError(
                    f"{other.model_id} was made from {what} {found}, and {first.model_id} from "
                    f"{wanted[what]}; expected the same, so that one table can compare them. "
                    "Change --models, or train them alike."
                )


def _provenance(artifact: Artifact) -> dict[str, Any]:
    facts = artifact.provenance
    return {
        "the split": asdict(SplitConfig(**facts["split"])),
        "the interactions": facts["interactions"],
        "the features of digest": facts["features"]["digest"],
    }


def scorer_of(contestant: EvaluatedModel, data: EvaluationData) -> Scorer:
    """A contestant's scorer over the arrays that were computed for all workers."""
    arrays = data.arrays[contestant.label]
    if contestant.model is None:
        return Oracle.scorer(arrays)
    if contestant.store:
        return load_artifact(contestant.store).model.scorer(arrays)
    sizes = Sizes(items=len(data.item_ids), users=0, feature_dim=0)
    scorer: Scorer = MODELS[contestant.model](contestant.config, sizes).scorer(arrays)
    return scorer
