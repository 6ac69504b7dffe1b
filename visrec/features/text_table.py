"""The Ray Data steps from titles and descriptions to a second table of features.

    plan    compares the items' texts with the features on disk: only new and changed are embedded
    chain   actors embed the texts and write parts
    commit  moves the manifest to exactly the items that have a text

The table has the format of the pictures' features. The digest of a row is that of its text, by
which an unchanged text is recognized, under another item id too.

Shapes: B items, P parts, D features.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from visrec.features.commit import (
    TableContent,
    commit_table,
    count_rejected,
    first_of_items,
    manifest_version,
    require_features,
    write_part,
    write_rejected,
)
from visrec.features.extract import ExtractResources
from visrec.features.sentences import TextConfig, TextEncoder, load_text_encoder
from visrec.features.table import (
    FEATURES_MANIFEST,
    REJECTED_FOLDER,
    Identity,
    Manifest,
    part_files,
    read_features_at,
    read_index,
    read_manifest,
    require_same_identity,
)
from visrec.ids import TEXT, index_in, is_in
from visrec.progress import ProgressHandle, Timer
from visrec.sources.items import require_one_row_per_item
from visrec.sources.texts import no_texts, read_texts
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store
from visrec.tasks import Ref, get

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.util.placement_group import PlacementGroup

CHUNK = 1024  # texts per call of an actor, and rows of a part: 0.8 MB at D = 384


@dataclass(frozen=True)
class TextPlan:
    """What an extraction of texts has to do.

    Attributes:
        rows: item_id and digest of every item with a text.
        pending: item_id, digest and text of those whose feature is not on disk.
        stored: item_id, digest, part and row of every feature on disk.
        parts: names of the parts that the column `part` of `stored` numbers.
        items: number of items of the items table.
    """

    rows: pa.Table
    pending: pa.Table
    stored: pa.Table
    parts: list[str]
    items: int


def describe_text_model(config: TextConfig) -> Identity:
    """The identity of a sentence model, which is loaded for this; call it in a Ray task."""
    return load_text_encoder(config).identity


def plan_texts(items_table: InputTable, store: Store, identity: Identity) -> TextPlan:
    """Compares the items' texts with the features on disk.

    Holds 130 bytes for each item, and the texts that are new.

    Args:
        items_table: the items table.
        store: the directory of the texts' features.
        identity: the identity of the features to be made.

    Raises:
        InputError: no item has a text, the table names an item twice, or the features on disk are
            another model's.
    """
    if store.exists(FEATURES_MANIFEST):
        require_same_identity(read_manifest(store).identity, identity, store, "text.model")
    parts = part_files(store)
    stored = read_index(store, parts, identity, ["item_id", "digest"])
    stored_keys = _keys(stored)
    ids, rows, pending = [], [], []
    for batch in read_texts(items_table):
        ids.append(batch["item_id"])
        texts = batch.filter(batch["text"].is_valid())
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts["text"].to_pylist()]
        texts = texts.add_column(1, "digest", pa.array(digests, TEXT))
        rows.append(texts.select(["item_id", "digest"]))
        pending.append(texts.filter(pc.invert(is_in(_keys(texts), stored_keys))))
    item_ids = pa.chunked_array([chunk for column in ids for chunk in column.chunks], TEXT)
    require_one_row_per_item(item_ids, items_table.uri)
    if not any(map(len, rows)):
        raise no_texts(items_table, len(item_ids))
    return TextPlan(pa.concat_tables(rows), pa.concat_tables(pending), stored, parts, len(item_ids))


def _keys(rows: pa.Table) -> pa.ChunkedArray:
    """Item id and digest as one text per row."""
    return pc.binary_join_element_wise(
        rows["item_id"].cast(TEXT), rows["digest"].cast(TEXT), pa.scalar("\0", TEXT)
    )


@dataclass(frozen=True, kw_only=True)
class TextExtraction:
    """What the actors of an extraction share.

    Attributes:
        plan: the plan.
        store: the directory of the texts' features.
        text: the sentence model.
        identity: the identity of the features.
        resources: what the actors request.
        progress_actor: counts the texts.
    """

    plan: Ref
    store: Store
    text: TextConfig
    identity: Identity
    resources: ExtractResources
    progress_actor: ProgressHandle


def text_chain(extraction: TextExtraction, pending: int, workers: "PlacementGroup") -> "Dataset":
    """The chain over the pending texts; its rows name the files that were written.

    Args:
        extraction: what the actors share.
        pending: number of items whose feature is not on disk.
        workers: one bundle per actor.
    """
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    chunks, resources = -(-pending // CHUNK), extraction.resources
    return ray.data.range(chunks, override_num_blocks=chunks).map_batches(
        EmbedTexts,
        fn_constructor_args=(extraction,),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers.bundle_count),
        num_cpus=resources.cpus_per_worker,
        num_gpus=1 if resources.use_gpu else None,
        scheduling_strategy=PlacementGroupSchedulingStrategy(workers),
    )


class EmbedTexts:
    """The number of a chunk in, the files written for it and how many texts were embedded out."""

    def __init__(self, extraction: TextExtraction) -> None:
        torch.set_num_threads(1)
        self._extraction = extraction
        self._timer = Timer(extraction.progress_actor)
        device = "cuda" if extraction.resources.use_gpu else "cpu"
        with self._timer.call("load"):
            self._encoder = load_text_encoder(extraction.text, device)

    # Ray Data types the argument of a step as a union of all batch formats.
    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        extraction, timer = self._extraction, self._timer
        with timer.call():
            plan: TextPlan = get(extraction.plan)
            rows = plan.pending.slice(int(batch["id"][0]) * CHUNK, CHUNK)
            with timer.phase("network"):
                feature_BD, computed = embed_texts(rows, plan, extraction.store, self._encoder)
            with timer.phase("write"):
                names = write_texts(extraction.store, rows, feature_BD, extraction.identity)
            timer.report(rows=len(rows))
        return {"name": names, "computed": [computed, *[0] * (len(names) - 1)]}


def embed_texts(
    rows: pa.Table, plan: TextPlan, store: Store, encoder: TextEncoder
) -> tuple[npt.NDArray[np.float16], int]:
    """The features of some pending rows: from disk where a text has one under another item id.

    Returns:
        (B, D) features, and how many distinct texts were embedded.
    """
    feature_BD = np.empty((len(rows), encoder.identity.dim), np.float16)
    stored_B = index_in(rows["digest"], plan.stored["digest"])
    if (reused := np.flatnonzero(stored_B >= 0)).size:
        stored = plan.stored.take(pa.array(stored_B[reused]))
        feature_BD[reused] = read_features_at(store, plan.parts, stored, encoder.identity.dim)
    new = np.flatnonzero(stored_B < 0)
    texts = rows["text"].take(pa.array(new)).to_pylist()
    distinct = list(dict.fromkeys(texts))
    position = {text: index for index, text in enumerate(distinct)}
    embedded = encoder(distinct)
    with np.errstate(over="ignore"):
        feature_BD[new] = embedded[[position[text] for text in texts]]
    return feature_BD, len(distinct)


def write_texts(
    store: Store, rows: pa.Table, feature_BD: npt.NDArray[np.float16], identity: Identity
) -> list[str]:
    """Writes a part, and a file of rejections if a feature does not fit into float16.

    Returns:
        The names of the files.
    """
    is_finite_B = np.isfinite(feature_BD).all(axis=1)
    rows = rows.append_column("source", pa.nulls(len(rows), pa.string()))
    names = []
    if is_finite_B.any():
        part = rows.select(["item_id", "digest", "source"]).filter(pa.array(is_finite_B))
        names.append(write_part(store, part, feature_BD[is_finite_B], identity))
    if not is_finite_B.all():
        bad = rows.filter(pa.array(~is_finite_B))
        columns = {
            "item_id": bad["item_id"],
            "reason": ["feature_not_finite"] * len(bad),
            "detail": ["the model's output does not fit into float16"] * len(bad),
            "source": bad["source"],
        }
        names.append(write_rejected(store, pa.table(columns), identity))
    return names


def commit_texts(
    plan: TextPlan, written: list[str], store: Store, identity: Identity, max_rejected: float
) -> tuple[Manifest, dict[str, int]]:
    """Makes the directory hold exactly the items that have a text.

    Args:
        plan: the extraction's plan.
        written: names of the files that the extraction has written.
        store: the directory of the texts' features.
        identity: the identity of the features.
        max_rejected: the largest share of the texts that may be rejected.

    Returns:
        The manifest, and the number of rejected texts by reason.

    Raises:
        InputError: a larger share was rejected; nothing was committed.
        ConflictError: another run committed in the meantime.
    """
    version, names = manifest_version(store), part_files(store)
    rejected_names = sorted(name for name in written if name.startswith(REJECTED_FOLDER))
    rejected = read_index(store, rejected_names, identity, REJECTED.names)
    rejected = rejected.select(REJECTED.names).cast(REJECTED).sort_by("item_id")
    reasons = count_rejected(rejected, len(plan.rows), max_rejected, store, "texts")
    index = read_index(store, names, identity, ["item_id", "digest"])
    rows = _current_rows(index, plan.rows)
    is_rejected = is_in(plan.rows["item_id"], rejected["item_id"])
    require_features(plan.rows["item_id"].filter(pc.invert(is_rejected)), rows, store)
    content = TableContent(
        identity=identity,
        rows=rows,
        files=dict(_current_parts(store, names, index, rows, identity)),
        rejected=rejected,
        settings={},
    )
    return commit_table(store, content, version), reasons


def _current_rows(index: pa.Table, wanted: pa.Table) -> pa.Table:
    """One row of the index for each item and digest that is wanted."""
    index = index.filter(is_in(_keys(index), _keys(wanted)))
    return first_of_items(index, ("part", "row"))


def _current_parts(
    store: Store, names: list[str], index: pa.Table, rows: pa.Table, identity: Identity
) -> Iterator[tuple[str, int]]:
    """Names and row counts of parts that hold exactly `rows`.

    Parts with only such rows are kept; what others have of them is written anew, together.
    """
    stored_P = np.bincount(index["part"].to_numpy(), minlength=len(names))
    current_P = np.bincount(rows["part"].to_numpy(), minlength=len(names))
    is_whole_P = (current_P == stored_P) & (stored_P > 0)
    for part in np.flatnonzero(is_whole_P):
        yield names[part], int(stored_P[part])
    scattered = rows.filter(pa.array(~is_whole_P[rows["part"].to_numpy()]))
    source = pa.nulls(len(scattered), pa.string())
    for start in range(0, len(scattered), CHUNK):
        chunk = scattered.append_column("source", source).slice(start, CHUNK)
        feature_BD = read_features_at(store, names, chunk, identity.dim)
        yield write_part(store, chunk, feature_BD, identity), len(chunk)
