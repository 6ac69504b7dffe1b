"""What evaluation compares: trained models and baselines, over one catalogue and one split.

Shapes: N items, E test users, D feature width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.evaluation.baselines import (
    UNTRAINED,
    EvaluatedModel,
    baseline_arrays,
    baselines_for,
)
from visrec.evaluation.list_metrics import ItemStatistics, novelty
from visrec.evaluation.oracle import read_oracle
from visrec.evaluation.results import TrainingCost
from visrec.evaluation.table import ORACLE
from visrec.interactions.activity import Activity
from visrec.interactions.log import InteractionLog, ReadReport
from visrec.interactions.prepare import prepare_if_possible
from visrec.interactions.read import read_log
from visrec.interactions.split import HeldOut, RestoredSplit, restore_split
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import TIMES, Artifact, load_artifact
from visrec.models.base import Catalogue
from visrec.recommend.catalogue import load_catalogue, trained_users
from visrec.retrieval.moments import ItemOrder, Moments
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store


@dataclass(frozen=True)
class EvaluationInputs:
    """Where evaluation reads.

    Attributes:
        models: the trained models' directories, by label; with a single model the label is "" and
            its kind is shown.
        features: the features directory.
        interactions: which interactions count.
        interactions_uri: where they are.
        items_table: the items table, or None.
        truth: planted truth, or None.
        text_features: the features directory of the texts, for models that take them.
        prepared: where interactions are prepared, to be read by several processes; None where one
            reads them as they are.
    """

    models: Mapping[str, Store]
    features: Store
    interactions: InteractionsConfig
    interactions_uri: str
    items_table: InputTable | None
    truth: Store | None
    text_features: Store | None = None
    prepared: Store | None = None


@dataclass(frozen=True)
class EvaluationData:
    """Test users, and the items as each model sees them. The workers of a node share one copy.

    Attributes:
        item_ids: (N,) in the order in which the items were first taken.
        user_ids: (E,) the test users, by their moments.
        moments: their profiles and held-out items, and what was known then.
        item_statistics: what the list metrics are computed from.
        evaluated_models: the models, trained ones first.
        arrays: each model's item arrays, by label.
        user_rows: each model's (E,) user rows, by label; -1 for users its training has not seen.
        costs: what it cost to train the trained models, by label.
        missing: held-out rows of the training that the interactions no longer have.
        read_report: how many rows of the interactions were read, and why some were dropped.
    """

    item_ids: pa.LargeStringArray
    user_ids: pa.LargeStringArray
    moments: Moments
    item_statistics: ItemStatistics
    evaluated_models: Sequence[EvaluatedModel]
    arrays: Mapping[str, ItemArrays]
    user_rows: Mapping[str, npt.NDArray[np.int64]]
    costs: Mapping[str, TrainingCost]
    missing: int
    read_report: ReadReport = field(default_factory=ReadReport)

    @property
    def held_out(self) -> HeldOut:
        """The test users' profiles and held-out items."""
        return self.moments.held_out

    def overview(self) -> "EvaluationOverview":
        """What the driver shows and records, without the data itself."""
        return EvaluationOverview(
            users=len(self.held_out),
            items=len(self.item_ids),
            labels=[model.label for model in self.evaluated_models],
            costs=self.costs,
            missing=self.missing,
            read_report=self.read_report,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationOverview:
    """Counts of evaluation data, and the rows of the table.

    Attributes:
        users: test users.
        items: items that are ranked.
        labels: the models, trained ones first.
        costs: what it cost to train the trained models, by label.
        missing: held-out rows of the training that the interactions no longer have.
        read_report: how many rows of the interactions were read, and why some were dropped.
    """

    users: int
    items: int
    labels: Sequence[str]
    costs: Mapping[str, TrainingCost]
    missing: int
    read_report: ReadReport


def prepare_evaluation(inputs: EvaluationInputs) -> EvaluationData:
    """Reads the split and the catalogue, and computes every model's item arrays.

    The items are those of the training that still have features, and the interactions end where the
    training's did: a model is evaluated on what its training held out, whatever came later.

    Raises:
        InputError: something is missing or does not fit a model; there are no test users; or the
            models cannot be compared in one table.
    """
    artifacts = _load_artifacts(inputs)
    first = next(iter(artifacts.values()))
    item_ids, catalogue = _catalogue_of_training(first, inputs)
    inputs.interactions.require_min_rating(
        first.provenance.data.interactions.min_rating, f"the model {first.model_id}"
    )
    prepared = prepare_if_possible(inputs.interactions, inputs.interactions_uri, inputs.prepared)
    log = read_log(inputs.interactions, inputs.interactions_uri, item_ids, prepared=prepared)
    split = _restore_split(first, log, item_ids, inputs.interactions_uri)
    by_night = first.provenance.data.split.by == "night"
    order = ItemOrder.of(Activity.from_rows(split.log.item_R, split.log.time_R, len(item_ids)))
    moments = Moments(order.of_held_out(split.held_out), order.activity, by_night)
    item_ids = item_ids.take(pa.array(order.item_N))
    user_ids = log.user_ids.take(pa.array(moments.held_out.user_E))
    rows, costs = _Rows(), {}
    for (label, artifact), store in zip(artifacts.items(), inputs.models.values(), strict=True):
        of_this = catalogue
        if artifact is not first:
            _, of_this = _catalogue_of_training(artifact, inputs)
        arrays = order.of_arrays(artifact.model.item_arrays(of_this))
        model = EvaluatedModel(label, artifact.name, artifact.config, store)
        costs[label] = _training_cost(artifact, store)
        rows.add(model, arrays, trained_users(artifact.user_ids, user_ids))
    # Baselines are fitted to everything before the test baskets, as the profiles are.
    baselines = baselines_for(len(item_ids), by_night)
    fitted = baseline_arrays(catalogue, split.known_items, baselines)
    fitted = {name: order.of_arrays(found) for name, found in fitted.items()}
    for baseline in baselines:
        if baseline.label not in rows.arrays:
            rows.add(baseline, fitted[str(baseline.model)], np.full(len(user_ids), -1))
    if inputs.truth:
        rows.add(EvaluatedModel(ORACLE, None), *read_oracle(inputs.truth, item_ids, user_ids))
    return EvaluationData(
        item_ids=item_ids,
        user_ids=user_ids,
        moments=moments,
        item_statistics=_item_statistics(
            fitted["visrank"]["unit"], order.of_lists(split.known_items)
        ),
        evaluated_models=rows.models,
        arrays=rows.arrays,
        user_rows=rows.user_rows,
        costs=costs,
        missing=split.num_missing,
        read_report=log.read_report,
    )


@dataclass(frozen=True)
class _Rows:
    """The rows of the table, as far as they are there: see `EvaluationData`."""

    models: list[EvaluatedModel] = field(default_factory=list)
    arrays: dict[str, ItemArrays] = field(default_factory=dict)
    user_rows: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(
        self, model: EvaluatedModel, arrays: ItemArrays, user_rows: npt.NDArray[np.int64]
    ) -> None:
        self.models.append(model)
        self.arrays[model.label] = arrays
        self.user_rows[model.label] = user_rows


def _load_artifacts(inputs: EvaluationInputs) -> dict[str, Artifact]:
    """The trained models by label, if they can be compared in one table."""
    stores = list(inputs.models.values())
    artifacts = [load_artifact(store) for store in stores]
    labels = [label or artifacts[0].name for label in inputs.models]
    _require_no_baseline_label(labels)
    _require_test_split(artifacts, stores)
    _require_comparable(artifacts)
    return dict(zip(labels, artifacts, strict=True))


def _restore_split(
    artifact: Artifact, log: InteractionLog, item_ids: pa.LargeStringArray, uri: str
) -> RestoredSplit:
    """The split of a model's training, restored from the interactions as they are now."""
    pairs = artifact.held_out
    interactions = artifact.provenance.data.interactions
    if interactions.digest is None or interactions.last_timestamp is None:
        raise InputError(
            f"{artifact.model_id} was trained without interactions, so nothing was held out to "
            "evaluate it on. Train it with interactions (--interactions.path of `visrec train`), "
            "and evaluate again."
        )
    if not len(pairs):
        split_time = artifact.provenance.data.split.at
        why = (
            f"none of its users had items both before and from {split_time} on (--split.at). "
            "Train with an earlier or a later moment"
            if split_time
            else "none of its users had two baskets, or rows that an evaluation column marks. "
            "Train with interactions that have, or with --split.by item"
        )
        raise InputError(
            f"The training of {artifact.model_id} held nothing out: {why}, and evaluate again."
        )
    split = restore_split(
        log,
        item_ids,
        pairs,
        interactions.last_timestamp,
        artifact.provenance.data.split,
        is_marked=interactions.has_marked_test_rows,
    )
    if not len(split.held_out):
        raise InputError(
            f"None of the {len(pairs)} rows that the training of {artifact.model_id} held out, "
            f"such as {pairs.slice(0, 1).to_pylist()[0]}, is in {uri}. A model is evaluated only "
            "on what its training did not see: expected interactions with these rows "
            "(--interactions.path, --interactions.as_of). Or train again."
        )
    return split


def _catalogue_of_training(
    artifact: Artifact, inputs: EvaluationInputs
) -> tuple[pa.LargeStringArray, Catalogue]:
    """The items of the training that still have features, as the model sees them."""
    item_ids, catalogue = load_catalogue(
        artifact, inputs.features, inputs.items_table, inputs.text_features
    )
    is_trained_N = catalogue.trained_N >= 0
    if is_trained_N.all():
        return item_ids, catalogue
    category_N = catalogue.category_N
    return item_ids.filter(pa.array(is_trained_N)), Catalogue(
        catalogue.feature_ND[is_trained_N],
        catalogue.trained_N[is_trained_N],
        None if category_N is None else category_N[is_trained_N],
        catalogue.visual_dim,
    )


def _item_statistics(unit_ND: npt.NDArray[np.float32], train: Jagged) -> ItemStatistics:
    takers_N = np.bincount(train.values, minlength=len(unit_ND))
    return ItemStatistics(
        unit_ND=unit_ND,
        novelty_N=novelty(takers_N, int((train.lengths > 0).sum())),
        cold_N=takers_N == 0,
    )


def _training_cost(artifact: Artifact, store: Store) -> TrainingCost:
    parameters = sum(parameter.numel() for parameter in artifact.model.parameters())
    train_s = float(store.read_json(TIMES)["train_s"]) if store.exists(TIMES) else None
    return TrainingCost(parameters=parameters, train_s=train_s)


def _require_no_baseline_label(labels: Sequence[str]) -> None:
    if len(labels) == 1:
        return
    taken = {ORACLE, *UNTRAINED} & set(labels)
    if taken:
        raise InputError(
            f"Found {min(taken)!r} for more than one row of the table; expected names in --models "
            "that are not those of baselines."
        )


def _require_test_split(artifacts: Sequence[Artifact], stores: Sequence[Store]) -> None:
    for artifact, store in zip(artifacts, stores, strict=True):
        if not artifact.provenance.data.split.test:
            raise InputError(
                f"The model at {store.root} was trained with --split.test false: it has seen what "
                "it would be evaluated on. Train one with --split.test true to evaluate it."
            )


def _require_comparable(artifacts: Sequence[Artifact]) -> None:
    """All models of one table were trained on the same data, with the same rows held out."""
    first = artifacts[0]
    expected = _compared_provenance(first)
    for other in artifacts[1:]:
        for what, found in _compared_provenance(other).items():
            if found != expected[what]:
                raise InputError(
                    f"{other.model_id} was made from {what} {found}, and {first.model_id} from "
                    f"{expected[what]}; expected the same, so that one table can compare them. "
                    "Change --models, or train the models on the same data."
                )


def _compared_provenance(artifact: Artifact) -> dict[str, Any]:
    """What must be equal; of any type, because it is only compared and printed."""
    data = artifact.provenance.data
    return {
        "the split": asdict(data.split),
        "the interactions": asdict(data.interactions),
        "the features of digest": data.features_digest,
    }
