"""A workspace from Python: the jobs as methods, their results as pandas DataFrames.

>>> from visrec import Workspace
>>> ws = Workspace("runs/demo")          # doctest: +SKIP
>>> ws.extract()                          # doctest: +SKIP
>>> ws.fit("hybrid", {"train.epochs": 5})  # doctest: +SKIP
>>> ws.evaluate()                         # doctest: +SKIP
>>> ws.recommend(users=["u1"], k=20)      # doctest: +SKIP

Every method takes the keys of its command (`visrec train --help` lists them) as a mapping. No
cluster is needed: the jobs that use Ray start it on this machine, once per process.
"""

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.cli.job import Job, JobConfig
from visrec.cli.keys import check_values, check_yaml, config_keys, flatten, has_value
from visrec.cli.output import say
from visrec.cli.parse import keys_of, parse_in_workspace
from visrec.cli.summary import Summary
from visrec.cli.workspace_keys import values_used_by
from visrec.errors import InputError
from visrec.evaluation.cards import make_cards, picture_source
from visrec.evaluation.report_content import ItemCard
from visrec.evaluation.results import METRICS
from visrec.ids import TEXT, index_in, nearest_id
from visrec.interactions.log import assign_shards
from visrec.models import MODELS
from visrec.models.artifact import MODEL_MANIFEST, load_artifact
from visrec.models.scorers import Scorer
from visrec.pipelines import (
    evaluate,
    extract_features,
    make_gallery,
    recommend,
    recommend_job,
    train,
)
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.make_gallery import GalleryJob
from visrec.pipelines.proposals import DataJob
from visrec.pipelines.recommend_job import (
    RecommendJob,
    model_store,
    recommendations_store,
    run_tables,
    scoring_inputs,
)
from visrec.pipelines.recommend_summary import QUERY_NOUNS
from visrec.pipelines.train import TrainJob
from visrec.progress import Timer
from visrec.publication.manifest import RunManifest
from visrec.publication.pointer import open_published, read_published
from visrec.publication.run_spec import RunSpec, run_store
from visrec.recommend.inputs import prepare_scoring
from visrec.recommend.lists import ShardRecommender
from visrec.recommend.queries import Queries, read_all_queries
from visrec.retrieval.similar import Kind, cosine_scorer
from visrec.storage.locations import normalize_location
from visrec.storage.store import Store
from visrec.yaml_text import as_flag

Keys = Mapping[str, Any]  # values as YAML has them
_JOBS = (ExtractJob, TrainJob, EvaluateJob, RecommendJob, DataJob)
_CARD = '<figure style="width:112px;margin:0 8px 8px 0;font:12px sans-serif">{}</figure>'


class Workspace:
    """The pictures and interactions of a shop, and everything that is made from them.

    `extract`, `fit`, `evaluate` and `publish` run `visrec extract`, `train`, `evaluate` and
    `recommend`. `recommend` and `similar` compute lists and write nothing. `recommendations` reads
    the published ones.

    Args:
        path: a directory or an s3:// prefix; docs/schemas.md says what it holds.
        keys: default keys of every call that has them, such as `interactions.columns`; a call's own
            keys win over these, and these win over the workspace's `visrec.yaml`.

    Raises:
        InputError: none of the methods has such a key.
    """

    def __init__(self, path: str = "runs/demo", keys: Keys | None = None) -> None:
        self._keys = _flatten_defaults(keys or {})
        self.path = normalize_location(path)  # Ray's workers may have another current directory

    def __repr__(self) -> str:
        return f"Workspace({self.path!r})"

    @classmethod
    def sample(cls, path: str = "runs/demo", keys: Keys | None = None) -> "Workspace":
        """A workspace with the painted sample gallery, as `visrec make-gallery` makes it.

        Args:
            path: where it is made.
            keys: keys of `visrec make-gallery`; unlike those of `Workspace(...)`, they are not
                defaults of the workspace's other methods.

        Raises:
            InputError: a key is unknown, or has a value that it cannot have.
        """
        workspace = cls(path)
        make_gallery.main(workspace._job(GalleryJob, keys), Summary("make_gallery"))
        return workspace

    def extract(self, keys: Keys | None = None) -> dict[str, Any]:
        """Turns new pictures into features, as `visrec extract`.

        Returns:
            The rows of the job's summary.

        Raises:
            InputError: a key is unknown, or an input is missing or not as expected.
        """
        return self._run(extract_features.main, self._job(ExtractJob, keys), extract_features.check)

    def fit(self, model: str | None = None, keys: Keys | None = None) -> dict[str, Any]:
        """Trains a model on the interactions, as `visrec train --model.name MODEL`.

        By default it is that of the key `model.name` of the workspace, or else hybrid.

        Raises:
            InputError: as `extract`.
        """
        job = self._job(TrainJob, {**({"model.name": model} if model else {}), **(keys or {})})
        return self._run(train.main, job, train.check)

    def evaluate(self, keys: Keys | None = None) -> pd.DataFrame:
        """Ranks the held-out items, as `visrec evaluate`; the report is in the workspace.

        Returns:
            One row a model, one column a metric, means over all users.

        Raises:
            InputError: as `extract`.
        """
        job = self._job(EvaluateJob, keys)
        self._run(evaluate.main, job, evaluate.check)
        models = Store.at(job.resolve(job.evaluation, "evaluation")).read_json(METRICS)["models"]
        means = {
            model: {metric: figure["mean"] for metric, figure in metrics.items()}
            for model, metrics in models.items()
        }
        return pd.DataFrame.from_dict(means, orient="index")

    def publish(self, keys: Keys | None = None) -> dict[str, Any]:
        """Makes the lists of all users, checks and publishes them, as `visrec recommend`.

        Raises:
            InputError: as `extract`.
            GateError: a gate held the lists back.
        """
        job = self._job(RecommendJob, keys)
        return self._run(recommend.main, job, recommend_job.check)

    def recommend(
        self,
        users: Iterable[str | int] | str | int,
        k: int = 20,
        keys: Keys | None = None,
        model: str | None = None,
    ) -> pd.DataFrame:
        """The k best items for some users, now; nothing is written.

        By default they are of the model that was trained last. A night may have rejected it and
        published the lists of another one (`recommendations()`): a line says so then. `model` names
        that one, by its id or its directory. The interactions of all users are read, so ask for
        many users at once.

        Returns:
            Columns user_id, rank, item_id, score and because_item_id, best first.

        Raises:
            InputError: as `extract`; or a user is in neither the interactions nor the users table.
        """
        queries = [users] if isinstance(users, str) or not isinstance(users, Iterable) else users
        return self._lists("user_to_item", list(queries), k, self._with_model(keys, model))

    def similar(self, item: str | int, k: int = 20, keys: Keys | None = None) -> pd.DataFrame:
        """The k items that are most similar to one, by the cosine of the model's item vectors.

        Returns:
            Columns item_id (the query), rank, similar_item_id and score, best first.

        Raises:
            InputError: as `extract`; or the item has no vector.
        """
        return self._lists("item_to_item", [item], k, keys)

    def recommendations(self) -> "PublishedLists":
        """The lists that are published.

        Raises:
            InputError: nothing is published yet, or its manifest is damaged.
        """
        recommendations = Store.at(JobConfig(workspace=self.path).resolve(None, "recommendations"))
        _, manifest = open_published(recommendations)
        if manifest is None:
            raise InputError(
                f"Nothing is published at {recommendations.root}; expected a run. Workspace."
                "publish(), `visrec recommend` and `visrec nightly` publish one."
            )
        return PublishedLists(run_store(recommendations, manifest.run_id), manifest)

    def show(
        self,
        user: str | int,
        k: int = 10,
        keys: Keys | None = None,
        model: str | None = None,
    ) -> "Gallery":
        """The k best items for a user as pictures, for a notebook; `model` as in `recommend`.

        Raises:
            InputError: as `recommend`.
        """
        lists = self.recommend([user], k, keys, model)
        job = self._job(RecommendJob, keys)
        ids = pa.array(lists["item_id"].to_list(), TEXT)
        features = Store.at(job.resolve(job.features, "features"))
        data_job = self._job(DataJob, None)
        images = picture_source(data_job.resolve(data_job.images, "images"), features)
        cards = make_cards(ids, images, run_tables(job).items)
        return Gallery(f"For {user}", tuple(cards.values()))

    def _job(self, job_type: type[Job], keys: Keys | None) -> Job:
        own = _flags(keys or {})
        # The keys below model are those of the model that is trained.
        named = _flags({key: value for key, value in self._keys.items() if key == "model.name"})
        has_model = has_value("model.name", config_keys(job_type))
        known = keys_of(job_type, [*(named if has_model else []), *own])
        check_values("the keys of this call", keys or {}, known)
        shared = {key: value for key, value in self._keys.items() if has_value(key, known)}
        place = ["--workspace", self.path, "--local", "true"]
        return parse_in_workspace(job_type, [*place, *_flags(shared), *own])

    def _with_model(self, keys: Keys | None, model: str | None) -> Keys | None:
        """The keys with the directory of a model that is given by its id or directory."""
        if model is None:
            return keys
        named = Store.at(self.path) / "models" / model
        return {**(keys or {}), "model": named.root if named.exists(MODEL_MANIFEST) else model}

    def _run(
        self, main: Callable[[Job, Summary], None], job: Job, check: Callable[[Job], None]
    ) -> dict[str, Any]:
        """Runs a job in this process, which starts Ray if the job has enough to do for several."""
        check(job)
        summary = Summary(main.__module__.rpartition(".")[2])
        main(job, summary)
        summary.rows |= values_used_by(job).summary_row
        summary.write(Store.at(job.workspace))
        return dict(summary.rows)

    def _lists(
        self, kind: Kind, queries: Sequence[str | int], k: int, keys: Keys | None
    ) -> pd.DataFrame:
        if fixed := [key for key in ("kind", "k", "layout") if key in (keys or {})]:
            raise InputError(
                f"Found the key {fixed[0]}; expected none of kind, k and layout: recommend(users) "
                "and similar(item) set them, k by their argument.",
                key=fixed[0],
            )
        job = self._job(RecommendJob, {**(keys or {}), "kind": kind, "k": k, "layout": "long"})
        recommend_job.check_inputs(job)
        if job.model is None:
            _say_which_model(job)
        data, arrays = prepare_scoring(scoring_inputs(job), job.shards, kind, k)
        scorer: Scorer = (
            cosine_scorer(arrays, use_gpu=False)
            if kind == "item_to_item"
            else load_artifact(model_store(job, job.model)).model.scorer(arrays)
        )
        # Nothing is written, so no run needs to exist: the recommender reads k, layout and kind.
        spec = RunSpec(Store.at(self.path), data.queries.shards, k, "long", kind, {})
        recommender = ShardRecommender(data, scorer, spec, None, Timer(None))
        return _to_frame(
            recommender.recommend(_find_queries(read_all_queries(data.queries), queries, kind))
        )


@dataclass(frozen=True)
class PublishedLists:
    """The lists of one run, as readers have them.

    Attributes:
        store: the run's directory.
        manifest: what the run is, and which files belong to it.
    """

    store: Store
    manifest: RunManifest

    def __repr__(self) -> str:
        noun = QUERY_NOUNS[self.manifest.kind]
        return f"PublishedLists({self.run_id!r}, {self.manifest.queries:,} {noun})"

    @property
    def run_id(self) -> str:
        return self.manifest.run_id

    def for_user(self, user: str) -> pd.DataFrame:
        """The list of a user, best first; empty if the run has none. One file is read.

        Raises:
            InputError: the lists of this run are of items.
        """
        if self.manifest.kind != "user_to_item":
            raise InputError(
                f"Found the run {self.run_id}, whose lists are of items ({self.manifest.kind}); "
                "expected lists of users. Use to_pandas(), or name a run of users."
            )
        user = str(user)
        files = sorted(self.manifest.files)  # their names sort by shard (`RunSpec.part`)
        shard = int(assign_shards(pa.array([user], TEXT), len(files))[0])
        table = self._read(files[shard])
        return _to_frame(table.filter(pc.equal(table["user_id"].cast(pa.string()), user)))

    def to_pandas(self) -> pd.DataFrame:
        """All lists, one row an entry; they must fit into memory."""
        return _to_frame(pa.concat_tables(map(self._read, sorted(self.manifest.files))))

    def _read(self, name: str) -> pa.Table:
        with self.store.open_input(name) as file:
            return pq.read_table(file)


@dataclass(frozen=True)
class Gallery:
    """Items as pictures with titles; a notebook shows them.

    Attributes:
        heading: above the pictures.
        cards: the items, in order.
    """

    heading: str
    cards: tuple[ItemCard, ...] = field(repr=False)  # pictures are long

    def _repr_html_(self) -> str:
        figures = "".join(_CARD.format(_figure(card)) for card in self.cards)
        heading = html.escape(self.heading)
        return f'<h4>{heading}</h4><div style="display:flex;flex-wrap:wrap">{figures}</div>'


def _figure(card: ItemCard) -> str:
    name = html.escape(card.name)
    if card.thumbnail is None:
        return f"<figcaption>{name}</figcaption>"
    data = base64.b64encode(card.thumbnail).decode()
    image = f'<img src="data:image/webp;base64,{data}" alt="{name}" style="max-width:100%">'
    return f"{image}<figcaption>{name}</figcaption>"


def _flatten_defaults(keys: Keys) -> dict[str, Any]:
    """The default keys of a workspace, dotted.

    Raises:
        InputError: no job of a workspace has such a key.
    """
    known = {key: kind for job in _JOBS for key, kind in config_keys(job).items()}
    for model in MODELS.values():
        known |= config_keys(model.Config, "model.")
    for key in ("workspace", "model.config"):  # the path; the keys below model
        del known[key]
    check_yaml("the keys of a Workspace", keys, known)
    return dict(flatten(keys, known))


def _flags(keys: Keys) -> list[str]:
    return [as_flag(key, value) for key, value in keys.items()]


def _say_which_model(job: RecommendJob) -> None:
    """Says so if the lists are of another model than the published ones."""
    latest = model_store(job, None).name
    _, manifest = read_published(recommendations_store(job))
    if manifest is not None and manifest.model_id != latest:
        say(
            f"These lists are of {latest}, which was trained last; the published ones are of "
            f"{manifest.model_id} (model={manifest.model_id!r} computes with that one)."
        )


def _find_queries(known: Queries, queries: Sequence[str | int], kind: Kind) -> Queries:
    """These users or items among the queries.

    Raises:
        InputError: one of them is not among the queries.
    """
    ids = pa.array([str(query) for query in queries], TEXT)
    rows = index_in(ids, known.query_ids)
    if (rows < 0).any():
        missing = str(queries[int((rows < 0).argmax())])
        expected = (
            "a user of the interactions or of the users table"
            if kind == "user_to_item"
            else "an item that has a vector in this model"
        )
        raise InputError(
            f"Found {missing!r}; expected {expected}{nearest_id(missing, known.query_ids) or '.'}"
        )
    return known.take(rows)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    """Lists in either layout as a frame with one row an entry."""
    columns = table.column_names
    if "items" in columns:
        parents = pc.list_parent_indices(table["items"])
        lengths = pc.list_value_length(table["items"]).to_numpy()
        rank = np.concatenate([np.arange(1, n + 1) for n in lengths] or [np.zeros(0, int)])
        entries = pc.list_flatten(table["items"]).combine_chunks()
        flat = {columns[0]: table[columns[0]].take(parents), "rank": pa.array(rank)}
        flat |= {field.name: pc.struct_field(entries, field.name) for field in entries.type}
        table = pa.table(flat)
    plain = {
        name: column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    frame: pd.DataFrame = pa.table(plain).to_pandas()
    return frame
