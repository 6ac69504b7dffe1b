"""The Ray Data step from pictures to features: plan, fetch and decode, embed, write, commit.

    plan    what is listed against what is known: a picture whose source mark is known is not read
    chain   fetch, hash and decode in tasks (uint8 pixels), the network in actors, parts in tasks
    commit  the manifest names exactly the listed pictures; parts with others are cut down

A picture whose digest is known under another id is copied, not computed. What a killed run wrote
stays known to the next one.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from visrec.config import check_fields, plain
from visrec.errors import StorageError
from visrec.features.backbones import BackboneConfig, load_backbone
from visrec.features.commit import (
    commit_table,
    count_rejected,
    manifest_version,
    part_files,
    rejected_files,
    write_part,
    write_rejected,
)
from visrec.features.containers import PictureError
from visrec.features.decode import PictureLimits, Preprocessing, decode
from visrec.features.table import (
    MANIFEST,
    Identity,
    Manifest,
    read_index,
    read_manifest,
    read_part_rows,
    require_same,
)
from visrec.ids import TEXT, is_among, rows_of
from visrec.progress import Timer
from visrec.sources.images import Unlisted, fetch, list_pictures
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store

# Pictures a task fetches and decodes: 64 x 224 x 224 x 3 bytes are a block of 10 MB, and a task of
# about half a second on one core.
CHUNK = 64
_DECODE_BYTES = 512 << 20  # the largest picture that the limits let through, and a chunk of pixels
_PART_ROWS = 4096  # 10 MB of float16 features at D = 1280


@dataclass(frozen=True, kw_only=True)
class ExtractResources:
    """What the network may take of the cluster.

    Attributes:
        actors: processes that run the network; by default one a GPU where there are GPUs, else one
            for two CPUs of this cluster (at most 8).
        gpus_per_actor: whole GPUs of each.
        cpus_per_actor: CPU cores of each, and batches that its network computes at once on a CPU:
            each on one thread, so that features do not depend on it.
    """

    SECTION: ClassVar[str] = "resources"  # of its keys on the command line

    actors: int | None = None
    gpus_per_actor: int = 0
    cpus_per_actor: int = 1

    def __post_init__(self) -> None:
        check_fields(
            self,
            self.SECTION,
            actors="[1, 65536]",
            gpus_per_actor="[0, 1024]",
            cpus_per_actor="[1, 65536]",
        )

    @property
    def of_an_actor(self) -> dict[str, float]:
        gpus = {"GPU": float(self.gpus_per_actor)} if self.gpus_per_actor else {}
        return {"CPU": float(self.cpus_per_actor), **gpus}


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        listing: every picture, one an item id, as `visrec.sources.images.LISTING`.
        todo: those to read.
        known: item_id, digest, source, part and place of every feature that is on disk.
        parts: names of the parts that `known` numbers.
        listed: how many pictures there are, those that were rejected unread too.
        rejected: rejections that still stand.
        left_out: how many files are no pictures, by the ending of their names.
    """

    listing: pa.Table
    todo: pa.Table
    known: pa.Table
    parts: list[str]
    listed: int
    rejected: pa.Table
    left_out: Mapping[str, int]


def describe_backbone(config: BackboneConfig) -> tuple[Identity, Preprocessing]:
    """Loads a backbone to say what it makes; for a worker to run, since weights may be large."""
    backbone = load_backbone(config)
    identity = Identity(
        backbone=backbone.name,
        weights_digest=backbone.weights_digest,
        preprocessing=backbone.preprocessing.to_dict(),
        precision=backbone.precision,
        dim=backbone.dim,
    )
    return identity, backbone.preprocessing


def make_plan(images: str, store: Store, identity: Identity, limits: PictureLimits) -> Plan:
    """Compares the pictures with the features on disk.

    Raises:
        InputError: there is no picture, or the features are another backbone's.
    """
    unlisted = Unlisted()
    listing, twins = _without_twins(pa.concat_tables(list_pictures(images, unlisted)))
    unnamed = pa.Table.from_pylist(unlisted.rejected, REJECTED)
    same_limits = False
    if store.exists(MANIFEST):
        manifest = read_manifest(store)
        require_same(manifest.identity, identity, store, "backbone.name")
        same_limits = manifest.limits == plain(limits)
    parts = part_files(store)
    known = read_index(store, parts, identity, ["item_id", "digest", "source"])
    old = (
        read_index(store, rejected_files(store), identity, REJECTED.names) if same_limits else None
    )
    rejected = pa.concat_tables([_rejections(old, listing, twins), unnamed])
    done = pc.or_(_is_among(listing, known), _is_among(listing, rejected))
    todo = listing.filter(pc.invert(done))
    return Plan(
        listing=listing,
        todo=todo,
        known=known,
        parts=parts,
        listed=listing.num_rows + twins.num_rows + unnamed.num_rows,
        rejected=rejected,
        left_out=dict(unlisted.left_out.most_common()),
    )


def _without_twins(listing: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The first picture of each item id by URI and row, and the others."""
    order = [(name, "ascending") for name in ("item_id", "uri", "row_group", "row")]
    listing = listing.sort_by(order).combine_chunks()
    ids = listing["item_id"]
    first = pc.fill_null(pc.not_equal(ids[1:], ids[:-1]), True).combine_chunks()
    first = pa.concat_arrays([pa.array([True]), first])
    return listing.filter(first), listing.filter(pc.invert(first))


# Reasons that may be gone while the picture's file is the same.
_PASSING = ["duplicate_id", "unreadable", "out_of_memory"]


def _rejections(old: pa.Table | None, listing: pa.Table, twins: pa.Table) -> pa.Table:
    """The rejections that need no second look: earlier ones of the same files, and twins."""
    reason = pa.repeat(pa.scalar("duplicate_id"), twins.num_rows)
    said, space = pa.scalar("another picture has this item id:", TEXT), pa.scalar(" ", TEXT)
    uri = pc.fill_null(twins["uri"], "a row without a uri")
    detail = pc.binary_join_element_wise(said, uri, space)
    columns = [twins["item_id"], reason, detail, twins["source"]]
    rejected = [pa.table(columns, schema=REJECTED)]
    if old is not None:
        old = old.filter(pc.invert(pc.is_in(old["reason"], value_set=pa.array(_PASSING))))
        rejected.append(old.filter(_is_among(old, listing)).select(REJECTED.names).cast(REJECTED))
    return pa.concat_tables(rejected)


def _is_among(rows: pa.Table, others: pa.Table) -> pa.Array:
    """Which rows have the item id and the (known) source mark of one of the others."""
    ours, theirs = (_keys(table["item_id"], table["source"]) for table in (rows, others))
    return pc.and_(is_among(ours, pc.drop_null(theirs)), pc.is_valid(ours))


def _keys(item_ids: pa.ChunkedArray, sources: pa.ChunkedArray) -> pa.ChunkedArray:
    """Item ids and source marks as one text each, null where either is."""
    return pc.binary_join_element_wise(
        item_ids.cast(TEXT), sources.cast(TEXT), pa.scalar("\0", TEXT)
    )


def extract_chain(
    plan: "ray.ObjectRef[Plan]",
    todo: int,
    store: Store,
    config: BackboneConfig,
    limits: PictureLimits,
    identity: Identity,
    preprocessing: Preprocessing,
    resources: ExtractResources,
    places: PlacementGroup,
    tally: Any,
) -> Dataset:
    """The chain over what is to be done; its rows name the parts that were written.

    The network's actors run in the bundles of `places`, one in each. The tasks run wherever a CPU
    is free.
    """
    chunks = -(-todo // CHUNK)
    return (
        ray.data.range(chunks, override_num_blocks=chunks)
        # The memory that is asked for keeps decoding out of the network's processes, too: Ray fuses
        # steps that ask for the same.
        .map_batches(
            FetchAndDecode(plan, preprocessing, limits, tally),
            batch_size=1,
            num_cpus=1,
            memory=_DECODE_BYTES,
        )
        .map_batches(
            Embed,
            fn_constructor_args=(config, resources.gpus_per_actor, resources.cpus_per_actor, tally),
            batch_size=CHUNK,
            compute=ActorPoolStrategy(size=places.bundle_count),
            num_cpus=resources.cpus_per_actor,
            num_gpus=resources.gpus_per_actor or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(places),
        )
        .map_batches(WriteParts(plan, store, identity, tally), batch_size=_PART_ROWS, num_cpus=1)
    )


Batch = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class FetchAndDecode:
    """Chunk numbers in; item_id, source, digest, pixels, reason and detail out.

    A rejected picture has a reason, one whose digest is known the reason "known"; both have blank
    pixels.
    """

    plan: "ray.ObjectRef[Plan]"
    preprocessing: Preprocessing
    limits: PictureLimits
    tally: Any

    def __call__(self, batch: Any) -> Batch:
        timer, plan = Timer(self.tally), ray.get(self.plan)
        rows = plan.todo.slice(int(batch["id"][0]) * CHUNK, CHUNK)
        with timer.phase("fetch"):
            fetched = fetch(rows)
        digests = [
            "" if isinstance(data, StorageError) else hashlib.sha256(data).hexdigest()
            for data in fetched
        ]
        known = is_among(pa.array(digests, TEXT), plan.known["digest"]).to_pylist()
        pixels_BHWC = np.zeros((len(fetched), *self.preprocessing.shape), np.uint8)
        reasons, details = [""] * len(fetched), [""] * len(fetched)
        with timer.phase("decode"):
            for b, data in enumerate(fetched):
                try:
                    if known[b]:
                        reasons[b] = _KNOWN
                    elif isinstance(data, StorageError):
                        raise PictureError("unreadable", str(data))
                    else:
                        pixels_BHWC[b] = decode(data, self.preprocessing, self.limits)
                except PictureError as error:
                    reasons[b], details[b] = error.reason, error.detail
        timer.done()
        return {
            "item_id": _objects(rows["item_id"].to_pylist()),
            # A chunk of nothing but nulls would come out as a column of floats.
            "source": _objects([mark or "" for mark in rows["source"].to_pylist()]),
            "digest": _objects(digests),
            "pixels": pixels_BHWC,
            "reason": _objects(reasons),
            "detail": _objects(details),
        }


_KNOWN = "known"


def _objects(values: list[Any]) -> npt.NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


class Embed:
    """Pixels in, features out; the network is loaded once."""

    def __init__(self, config: BackboneConfig, gpus: int, threads: int, tally: Any) -> None:
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(1 if gpus else threads)
        self._timer = Timer(tally)
        with self._timer.call("load"):
            self._backbone = load_backbone(config, "cuda" if gpus else "cpu")

    def __call__(self, batch: Batch) -> Batch:
        with self._timer.call():
            return self._embedded(batch)

    def _embedded(self, batch: Batch) -> Batch:
        pixels_BHWC = batch.pop("pixels")
        chosen = np.flatnonzero(batch["reason"] == "")
        feature_BD = np.zeros((len(pixels_BHWC), self._backbone.dim), np.float16)
        with self._timer.phase("network"):
            pixels = torch.from_numpy(np.array(pixels_BHWC[chosen]))
            parts = self._pool.map(self._backbone, torch.split(pixels, self._backbone.batch))
            feature_BD[chosen] = torch.cat(list(parts)).cpu().numpy()
        finite_B = np.isfinite(feature_BD).all(axis=1)
        reason, detail = batch["reason"].copy(), batch["detail"].copy()
        reason[~finite_B] = "feature_not_finite"
        detail[~finite_B] = "the network's output does not fit into float16"
        self._timer.done(rows=len(pixels_BHWC), network=len(chosen))
        return {**batch, "reason": reason, "detail": detail, "feature": feature_BD}


@dataclass(frozen=True)
class WriteParts:
    """Features in, the names of the written files out."""

    plan: "ray.ObjectRef[Plan]"
    store: Store
    identity: Identity
    tally: Any

    def __call__(self, batch: Any) -> Batch:
        timer = Timer(self.tally)
        feature_BD = np.array(batch.pop("feature"))
        batch["source"] = _objects([mark or None for mark in batch["source"]])
        rows = pa.table({name: pa.array(values, TEXT) for name, values in batch.items()})
        copied = np.flatnonzero(batch["reason"] == _KNOWN)
        if len(copied):
            feature_BD[copied] = self._copies(rows["digest"].take(copied))
        good = (batch["reason"] == "") | (batch["reason"] == _KNOWN)
        names, counts = [], []
        with timer.phase("write"):
            if good.any():
                part = rows.filter(pa.array(good))
                names.append(write_part(self.store, part, feature_BD[good], self.identity))
                counts.append(int(good.sum()) - len(copied))
            if not good.all():
                part = rows.filter(pa.array(~good))
                names.append(write_rejected(self.store, part, self.identity))
                counts.append(0)
        timer.done()
        return {"name": _objects(names), "computed": np.array(counts, np.int64)}

    def _copies(self, digests: pa.ChunkedArray) -> npt.NDArray[np.float16]:
        """The features that are on disk for pictures of these digests."""
        plan: Plan = ray.get(self.plan)
        places = plan.known.take(rows_of(digests, plan.known["digest"]))
        return read_part_rows(self.store, plan.parts, places, self.identity.dim)


def commit(
    plan: Plan,
    written: list[str],
    store: Store,
    identity: Identity,
    limits: PictureLimits,
    max_rejected: float,
) -> tuple[Manifest, dict[str, int]]:
    """Makes the features directory hold exactly the listed pictures, removes what is left over.

    Returns:
        The manifest, and rejected pictures by reason.

    Raises:
        InputError: more than `max_rejected` of the pictures were rejected; nothing was committed.
        ConflictError: another run committed in the meantime.
    """
    version = manifest_version(store)
    names = part_files(store)
    index = read_index(store, names, identity, ["item_id", "digest", "source"])
    live = _live(plan.listing, index, names, written)
    rejected = _all_rejected(plan, written, store, identity, live)
    reasons = count_rejected(rejected, plan.listed, max_rejected, store, "pictures")
    files = _cut_parts(store, names, index, live, identity)
    return commit_table(store, identity, live, files, rejected, limits, version), reasons


def _live(listing: pa.Table, index: pa.Table, names: list[str], written: list[str]) -> pa.Table:
    """The one row of the index for each listed picture that has any; this run's goes first.

    Pictures without a source mark are read and written every time, so that the newest row is known.
    """
    ours, listed = (_keys(t["item_id"], pc.fill_null(t["source"], "")) for t in (index, listing))
    index = index.filter(is_among(ours, listed))
    parts = pa.array([names.index(name) for name in written if name in names], pa.int32())
    is_old = pc.invert(pc.is_in(index["part"], value_set=parts))
    order = [(name, "ascending") for name in ("item_id", "old", "part", "place")]
    index = index.append_column("old", is_old).sort_by(order).combine_chunks()
    ids = index["item_id"].to_numpy()
    return index.filter(pa.array(np.append([True], ids[1:] != ids[:-1])[: len(ids)]))


def _all_rejected(
    plan: Plan, written: list[str], store: Store, identity: Identity, live: pa.Table
) -> pa.Table:
    """Rejections that still stood, and this run's, of pictures that have no feature."""
    names = rejected_files(store)
    index = read_index(store, names, identity, REJECTED.names)
    found = _live(plan.todo, index, names, written).select(REJECTED.names).cast(REJECTED)
    fresh = found.filter(pc.invert(is_among(found["item_id"], live["item_id"])))
    return pa.concat_tables([plan.rejected, fresh]).sort_by("item_id")


def _cut_parts(
    store: Store, names: list[str], index: pa.Table, live: pa.Table, identity: Identity
) -> Iterator[tuple[str, int]]:
    """Names and rows of the parts that hold the live rows and no others."""
    rows_P = np.bincount(index["part"].to_numpy(), minlength=len(names))
    live_P = np.bincount(live["part"].to_numpy(), minlength=len(names))
    for number, name in enumerate(names):
        if live_P[number] == rows_P[number] > 0:
            yield name, int(rows_P[number])
        elif live_P[number]:
            rows = live.filter(pc.equal(live["part"], number))
            feature_BD = read_part_rows(store, names, rows, identity.dim)
            yield write_part(store, rows, feature_BD, identity), rows.num_rows
