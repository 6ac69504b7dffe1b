"""The base class of every model: how jobs build it, train it and score with it.

To add a model, write one file with a `ModelConfig` and a `Model`, and enter the class in
`visrec.models.MODELS`. Jobs use nothing of a model but what this file declares.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from visrec.interactions.activity import ACTIVITY_FEATURES
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays
from visrec.models.scorers import Scorer


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """What data a model requires and what it supports.

    Attributes:
        requires_interactions: users' interactions, to train or fit on.
        requires_features: features of the items.
        requires_categories: the category of each item.
        requires_ratings: users' ratings of items, where there are any.
        supports_new_items: the model scores items that training has not seen. If it does not, these
            items are not recommended.
        supports_new_users: the model scores users that training has not seen, from their profiles.
            If it does not, these users get fallback lists.
        personalized: scores differ between users.
    """

    requires_interactions: bool = True
    requires_features: bool = False
    requires_categories: bool = False
    requires_ratings: bool = False
    supports_new_items: bool = True
    supports_new_users: bool = True
    personalized: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainOverrides:
    """A model's own defaults of training settings; None keeps the default of `TrainConfig`."""

    learning_rate: float | None = None
    weight_decay: float | None = None

    def to_dict(self) -> dict[str, float]:
        """The fields of `TrainConfig` to replace, with their values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of every model's configuration."""


@dataclass(frozen=True)
class Catalogue:
    """The items that a model is trained on, or those that it scores.

    Attributes:
        feature_ND: (N, D) features, float16 or float32.
        trained_N: (N,) each item's row among the items of training; -1 for an item that training
            has not seen.
        category_N: (N,) each item's code among the categories of training; -1 for an item without
            a category or with an unseen one. None for a model that does not require categories.
        visual_dim: how many leading dimensions of the features describe appearance; the rest are of
            texts. None for all.
        activity_NA: (N, A) what is known of the items at the moment of scoring
            (`visrec.interactions.activity`); None where nothing is.
    """

    feature_ND: npt.NDArray[np.floating[Any]]
    trained_N: npt.NDArray[np.int64]
    category_N: npt.NDArray[np.int64] | None = None
    visual_dim: int | None = None
    activity_NA: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.feature_ND)

    @property
    def activity(self) -> npt.NDArray[np.float32]:
        """(N, A) what is known of the items; zeros where nothing is."""
        if self.activity_NA is None:
            return np.zeros((len(self), ACTIVITY_FEATURES), np.float32)
        return self.activity_NA

    @property
    def visual_feature_NP(self) -> npt.NDArray[np.floating[Any]]:
        """(N, P) the features that describe appearance, without those of texts."""
        return self.feature_ND[:, : self.visual_dim]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What determines the shapes of a model's parameters.

    Attributes:
        items: number of items in training.
        users: number of users in training.
        feature_dim: D, the width of an item's feature.
        categories: number of categories in training.
    """

    items: int
    users: int
    feature_dim: int
    categories: int = 0


class Model(nn.Module, ABC):
    """A recommendation model.

    `forward(batch)` returns the mean loss of a batch of the kind that `trains_on` names; a model
    that trains on nothing has none.

    A model that has a vector for each user keeps these vectors in an `nn.Embedding` named `users`,
    and keeps nothing else about users, so that `visrec forget` finds them.

    Attributes:
        Config: the dataclass of the model's own settings.
        traits: what data the model requires and what it supports.
        default_overrides: the model's own defaults of training settings.
        trains_on: the kind of batch that `forward` takes, a key of
            `visrec.training.batch_sources.SOURCES`; "nothing" if `fit` alone sets the weights.
        added_score_weights: the weights, besides 0, among which training chooses for a model with
            `fit_added_score`.
        item_tables: parameters and buffers with a row for each item of training that `item_arrays`
            reads and `scorer` does not.
    """

    Config: ClassVar[type[ModelConfig]]
    traits: ClassVar[ModelTraits] = ModelTraits()
    default_overrides: ClassVar[TrainOverrides] = TrainOverrides()
    trains_on: ClassVar[
        Literal["triples", "drawn_triples", "moments", "users", "ratings", "nothing"]
    ]
    added_score_weights: ClassVar[tuple[float, ...]] = ()
    item_tables: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Sets what is computed without gradients, such as feature statistics or counts.

        Most models have nothing to set.

        Args:
            catalogue: the items of training.
            train: each user's training items, as rows of the catalogue.
        """

    def fit_added_score(self, train: Jagged) -> bool:
        """Computes a score in closed form that can be added to the network's.

        Args:
            train: as in `fit`.

        Returns:
            Whether there is one: most models have none, and some data give none.
        """
        del train
        return False

    def set_added_score_weight(self, weight: float) -> None:
        """Adds the score of `fit_added_score` with this weight, instead of an earlier weight."""

    @abstractmethod
    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """What the scorer needs to know about the items: arrays whose first axis is N.

        They are computed once, and all workers of a node share them. If a model reads activity and
        the catalogue has none, there is an array `ACTIVITY`, which evaluation replaces by that of
        each moment.
        """

    @abstractmethod
    def scorer(self, arrays: ItemArrays) -> Scorer:
        """A scorer over the result of `item_arrays`."""

    def without_item_tables(self) -> Self:
        """Empties the `item_tables`, which `scorer` does not read, and returns this model.

        So the workers that score need no memory for the tables.
        """
        for name in self.item_tables:
            folder, _, attribute = name.rpartition(".")
            module = self.get_submodule(folder)
            table = getattr(module, attribute)
            if table is not None:
                empty = table.detach()[:0].clone()
                is_parameter = isinstance(table, nn.Parameter)
                setattr(module, attribute, nn.Parameter(empty) if is_parameter else empty)
        return self
