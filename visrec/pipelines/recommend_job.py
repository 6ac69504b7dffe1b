"""Recommends items with a trained model: scores all users, checks the lists, publishes them.

visrec recommend --local
visrec recommend --local --kind item_to_item
visrec recommend --workspace s3://shop/visrec --run_id 2026-11-22
visrec recommend --local --force_publish "half of the shop is closed today"
"""

from dataclasses import dataclass, field

from visrec.cli.job import JobConfig
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.features.item_features import ItemFeatures
from visrec.models.artifact import LATEST, MODEL_MANIFEST, read_provenance
from visrec.paths import require_folder_name
from visrec.pipelines.input_checks import (
    announce_tables,
    require_features,
    require_interactions,
    require_model,
    require_table,
)
from visrec.pipelines.job_tables import (
    find_interactions,
    interactions_uri,
    items_table,
    prepared_store,
    users_table,
)
from visrec.publication.gate_context import GatesConfig
from visrec.publication.list_tables import Layout
from visrec.publication.tables import PublishConfig, require_tables
from visrec.recommend.eligibility import require_rule_columns
from visrec.recommend.inputs import ScoringInputs
from visrec.recommend.score import ScoreResources
from visrec.retrieval.rules import RulesConfig
from visrec.retrieval.similar import Kind
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class RecommendJob(JobConfig):
    """Recommends items with a trained model.

    Attributes:
        model: directory of the model; by default the model that was trained last in the workspace.
        features: features directory of the pictures; by default features of the workspace.
        text_features: features directory of the texts, for a model that takes them; by default
            text_features of the workspace.
        interactions: which users took which items; taken items are not recommended.
        items: items table with an available column; by default items.* of the workspace, if it
            exists. Items that are not available are not recommended.
        items_columns: its columns that have other names in the files, such as {item_id: sku}.
        users: users table, for users without any interaction; by default users.* of the workspace,
            if it exists. These users get the most popular available items.
        users_columns: its columns that have other names in the files.
        kind: user_to_item recommends items to each user; item_to_item lists for each item those
            most similar to it, by the cosine of the model's item vectors.
        recommendations: where the run goes; by default recommendations of the workspace, or
            similar_items for item_to_item.
        run_id: name of the run; by default a digest of all inputs. A second start with the same
            name does only what is missing.
        k: entries per list.
        layout: nested, one row per user; or long, one row per entry.
        shards: number of files; users are assigned to them by a hash of their id. By default as
            many as the lists need: at most about 32 MB each, and at least 8 files.
        resources: the cluster resources that scoring may use.
        rules: what a list may hold.
        incremental: take over the last publication's lists of users for whom nothing has changed,
            and score only the others and the new items. The lists are the same either way.
        gates: when a publication is held back.
        publish: how lists reach readers who do not follow the pointer.
        evaluation: directory that `visrec evaluate` wrote; by default evaluation of the workspace.
            If this model is not in it, the gates on its quality are skipped, and the job says so.
        force_publish: the reason to publish lists that a gate would hold back; the manifest records
            it. A run that was held back before is checked again, but not scored again.
    """

    model: str | None = None
    features: str | None = None
    text_features: str | None = None
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    items: str | None = None
    items_columns: dict[str, str] = field(default_factory=dict)
    users: str | None = None
    users_columns: dict[str, str] = field(default_factory=dict)
    kind: Kind = "user_to_item"
    recommendations: str | None = None
    run_id: str | None = None
    k: int = 100
    layout: Layout = "nested"
    shards: int | None = None
    resources: ScoreResources = field(default_factory=ScoreResources)
    rules: RulesConfig = field(default_factory=RulesConfig)
    incremental: bool = True
    gates: GatesConfig = field(default_factory=GatesConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    evaluation: str | None = None
    force_publish: str | None = None

    def __post_init__(self) -> None:
        if self.run_id is not None:
            require_folder_name(self.run_id, "run_id")
        if self.force_publish is not None and not self.force_publish.strip():
            raise InputError(
                "Found --force_publish without a reason; expected one in words, for the manifest."
            )
        check_fields(self, "", k="[1, 1000000]", shards="[1, 1000000]")


def check(config: RecommendJob) -> None:
    check_inputs(config)
    announce_run_tables(config)


def check_inputs(config: RecommendJob) -> None:
    """Checks the features, the tables and the model, and prints nothing."""
    item_features = item_features_of(config, config.model)
    require_features(item_features, config, config.features, config.text_features)
    check_tables(config)
    require_model(model_store(config, config.model))


def announce_run_tables(config: RecommendJob) -> None:
    """Prints how the tables are written and read."""
    tables = run_tables(config)
    announce_tables(
        config.interactions,
        tables.interactions_uri,
        tables.items,
        tables.users,
        config.rules.blocked_table,
    )


def check_tables(config: RecommendJob) -> None:
    """Checks the tables of a run.

    A night calls this before its first step, when there are no features or model yet.

    Raises:
        InputError: a table is missing, or has other columns than declared or than the rules need;
            or one for SQL readers cannot be written.
    """
    tables = run_tables(config)
    require_interactions(config.interactions, tables.interactions_uri)
    require_table(tables.items, schemas.ITEMS)
    require_table(tables.users, schemas.USERS)
    require_table(config.rules.blocked_table, schemas.BLOCKED)
    require_rule_columns(config.rules, tables.items)
    require_tables(recommendations_store(config), config.publish.tables)


@dataclass(frozen=True)
class RunTables:
    """The tables of a run.

    Attributes:
        interactions_uri: the interactions; None for item-to-item lists without any.
        items: the items table, or None.
        users: the users table, or None.
    """

    interactions_uri: str | None
    items: InputTable | None
    users: InputTable | None


def run_tables(config: RecommendJob) -> RunTables:
    """Finds the tables.

    Raises:
        InputError: the interactions are missing, or there are several tables of one name.
    """
    needs_interactions = config.kind == "user_to_item"
    find = interactions_uri if needs_interactions else find_interactions
    return RunTables(
        find(config, config.interactions),
        items_table(config, config.items, config.items_columns),
        users_table(config, config.users, config.users_columns),
    )


def scoring_inputs(config: RecommendJob) -> ScoringInputs:
    """Where the scoring data are read.

    Raises:
        InputError: there is no trained model.
    """
    tables = run_tables(config)
    return ScoringInputs(
        model=model_store(config, config.model),
        features=Store.at(config.resolve(config.features, "features")),
        interactions=config.interactions,
        interactions_uri=tables.interactions_uri,
        items_table=tables.items,
        users_table=tables.users,
        rules=config.rules,
        text_features=Store.at(config.resolve(config.text_features, "text_features")),
        prepared=prepared_store(config),
    )


def recommendations_store(config: RecommendJob) -> Store:
    """Where the runs of this kind are."""
    folder = "recommendations" if config.kind == "user_to_item" else "similar_items"
    return Store.at(config.resolve(config.recommendations, folder))


def model_store(config: JobConfig, model: str | None) -> Store:
    """A model's directory: the one that is named, or the one that was trained last.

    Raises:
        InputError: none is named, and the workspace has none.
    """
    if model:
        return Store.at(model)
    models = Store.at(config.resolve(None, "models"))
    if not models.exists(LATEST):
        raise InputError(
            f"Found no trained model at {models.root}; expected one that `visrec train` wrote. "
            "Train first, or name a model's directory with --model."
        )
    return models / str(models.read_json(LATEST)["model_id"])


def item_features_of(config: JobConfig, model: str | None) -> ItemFeatures:
    """What a model takes; pictures if there is no model (`require_model` reports that)."""
    models = Store.at(config.resolve(None, "models"))
    if model is None and not models.exists(LATEST):
        return "pictures"
    store = model_store(config, model)
    return read_provenance(store).data.item_features if store.exists(MODEL_MANIFEST) else "pictures"
