"""What a run's lists are made from: digests of everything that is read, and the settings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from visrec.config import digest, plain
from visrec.features.table import read_manifest
from visrec.models.artifact import load_artifact
from visrec.publication.list_tables import Layout
from visrec.recommend.catalogue import feature_tables
from visrec.recommend.inputs import ScoringInputs
from visrec.retrieval.similar import Kind
from visrec.sources.interactions import digest_interactions
from visrec.storage.tables import digest_table


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """The shape of a run's lists and of its files.

    Attributes:
        k: list length.
        shards: number of files; None for as many as the lists need.
        layout: the layout of the tables.
        kind: user_to_item or item_to_item.
    """

    k: int
    shards: int | None
    layout: Layout
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class InputDigests:
    """Everything that decides the lists of a run. The run's manifest records it as `inputs`.

    Attributes:
        model: digest of the model's artifact.
        features: digest of the picture features; for a text-only model, of the text features.
        interactions: digest of the interactions before the cutoff, including rows with a low
            rating, because the items of those rows are excluded from the lists; None without
            interactions.
        items: digest of the items table, or None.
        users: digest of the users table, or None.
        min_rating: interactions with a lower rating do not count.
        as_of: the cutoff, as it was given.
        k: list length.
        shards: number of files, as it was given.
        layout: the layout of the tables.
        kind: user_to_item or item_to_item.
        rules: settings of the rules; the block list is in `blocked`.
        blocked: digest of the block list, or None.
        text: digest of the texts' features, in addition to those of the pictures; None for a model
            that takes one table.
    """

    model: str
    features: str
    interactions: str | None
    items: str | None
    users: str | None
    min_rating: float | None
    as_of: str | None
    k: int
    shards: int | None
    layout: Layout
    kind: Kind
    rules: Mapping[str, object]
    blocked: str | None
    text: str | None = None

    @property
    def digest(self) -> str:
        """The digest of all fields."""
        return digest(self.to_dict())

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON values; without `text` where there is none."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name != "text" or self.text is not None}

    def allows_reuse_of(self, other: Mapping[str, object]) -> bool:
        """Whether lists that were made from other inputs may be reused.

        They may if both have the same model, settings and rules. Differences in users and items are
        covered by fingerprints.

        Args:
            other: the other inputs, as the manifest of their run has them.
        """
        decisive = ("model", "k", "shards", "layout", "kind", "rules")
        fields = self.to_dict()
        return all(other.get(name) == fields[name] for name in decisive)


@dataclass(frozen=True, kw_only=True)
class RunSource:
    """The model of a run, and the inputs of its lists.

    Attributes:
        model_id: the model's name.
        model_name: its kind, such as curatornet.
        personalized: whether the model's scores differ between users.
        digests: everything that decides the lists.
    """

    model_id: str
    model_name: str
    personalized: bool
    digests: InputDigests


def read_run_source(inputs: ScoringInputs, settings: ListSettings) -> RunSource:
    """Reads the model and the digests of all inputs."""
    artifact = load_artifact(inputs.model)
    rules, interactions = inputs.rules, inputs.interactions
    tables = feature_tables(artifact, inputs.features, inputs.text_features)
    interactions_digest = None
    if inputs.interactions_uri:
        every_rating = replace(interactions, min_rating=None)
        interactions_digest = digest_interactions(every_rating, inputs.interactions_uri)
    digests = InputDigests(
        model=artifact.digest,
        features=read_manifest(tables.catalogue).digest,
        interactions=interactions_digest,
        items=digest_table(inputs.items_table) if inputs.items_table else None,
        users=digest_table(inputs.users_table) if inputs.users_table else None,
        min_rating=interactions.min_rating,
        as_of=interactions.as_of,
        k=settings.k,
        shards=settings.shards,
        layout=settings.layout,
        kind=settings.kind,
        rules={**plain(rules), "blocked": None},
        blocked=digest_table(rules.blocked_table) if rules.blocked_table else None,
        text=tables.text_digest,
    )
    return RunSource(
        model_id=artifact.model_id,
        model_name=artifact.name,
        personalized=artifact.model.traits.personalized,
        digests=digests,
    )
