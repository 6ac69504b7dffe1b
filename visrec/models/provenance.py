"""What a model was made from, as its `config.json` records it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from visrec.config import plain
from visrec.features.item_features import ItemFeatures
from visrec.features.table import Identity
from visrec.interactions.split import SplitConfig


@dataclass(frozen=True, kw_only=True)
class InteractionsProvenance:
    """The interactions that a model was trained on.

    Attributes:
        digest: hash of the files; None for a model that was trained without interactions.
        min_rating: rows with a lower rating were left out; None keeps all rows.
        as_of: the cutoff, as it was given; None where there was none.
        last_timestamp: Unix seconds of the latest row; None without rows.
        has_marked_test_rows: whether an `evaluation` column marked the test rows.
    """

    digest: str | None = None
    min_rating: float | None = None
    as_of: str | None = None
    last_timestamp: int | None = None
    has_marked_test_rows: bool = False


@dataclass(frozen=True, kw_only=True)
class TextProvenance:
    """The features of texts that a model takes in addition to those of pictures.

    Attributes:
        digest: the digest of the table.
        identity: the sentence model that made them.
        mean: what an item without a text has, one number for each dimension.
    """

    digest: str
    identity: Identity
    mean: tuple[float, ...]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TextProvenance":
        return cls(
            digest=fields["digest"],
            identity=Identity(**fields["identity"]),
            mean=tuple(fields["mean"]),
        )


@dataclass(frozen=True, kw_only=True)
class DataProvenance:
    """The inputs of a training and how they were split.

    Attributes:
        features_digest: digest of the feature table, that of the texts for a model of texts alone.
        features_identity: the network, weights and preprocessing that made the features.
        interactions: which interactions, and which rows of them.
        items_digest: hash of the items table; None where none was read.
        split: what was held out.
        item_features: the tables that the model takes.
        text: the features of texts, in addition to those of pictures; None without.
    """

    features_digest: str
    features_identity: Identity
    interactions: InteractionsProvenance
    items_digest: str | None
    split: SplitConfig
    item_features: ItemFeatures = "pictures"
    text: TextProvenance | None = None

    def to_dict(self) -> dict[str, Any]:
        """The inputs as JSON values."""
        fields: dict[str, Any] = {
            "features": {"digest": self.features_digest, **asdict(self.features_identity)},
            "interactions": asdict(self.interactions),
            "items": {"digest": self.items_digest},
            "split": asdict(self.split),
        }
        if self.item_features != "pictures":
            fields |= {"item_features": self.item_features}
        if self.text is not None:
            fields |= {"text": asdict(self.text)}
        return dict(plain(fields))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "DataProvenance":
        identity = dict(fields["features"])
        return cls(
            features_digest=identity.pop("digest"),
            features_identity=Identity(**identity),
            interactions=InteractionsProvenance(**fields["interactions"]),
            items_digest=fields["items"]["digest"],
            split=SplitConfig(**fields["split"]),
            item_features=fields.get("item_features", "pictures"),
            text=TextProvenance.from_dict(fields["text"]) if "text" in fields else None,
        )


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The inputs and the settings that a model was made from.

    Attributes:
        data: the inputs and their split.
        train: the training configuration, as JSON values, because this module may not import the
            class.
        sampling: the sampling configuration, as JSON values.
        settings_digest: hash of data and settings. A rerun with the same digest has nothing to do.
    """

    VERSION: ClassVar[int] = 1

    data: DataProvenance
    train: Mapping[str, Any]
    sampling: Mapping[str, Any]
    settings_digest: str

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON values, with its version."""
        return {
            "version": self.VERSION,
            **self.data.to_dict(),
            "train": plain(self.train),
            "sampling": plain(self.sampling),
            "settings_digest": self.settings_digest,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Provenance":
        """Reads what `to_dict` made.

        Raises:
            KeyError: a field is missing.
            ValueError: the fields are those of another version.
        """
        try:
            if fields["version"] != cls.VERSION:
                raise ValueError(
                    f"found a provenance of version {fields['version']}; expected {cls.VERSION}"
                )
            return cls(
                data=DataProvenance.from_dict(fields),
                train=fields["train"],
                sampling=fields["sampling"],
                settings_digest=fields["settings_digest"],
            )
        except TypeError as error:
            raise ValueError(str(error)) from error
