"""The steps from pictures to features.

    plan    compares the listed pictures with the features on disk: only new and changed are read
    chain   fetches, hashes and decodes a chunk of pictures (uint8 pixels), runs the network, pools
            the pictures of an item, and writes parts
    commit  moves the manifest to exactly the listed pictures; parts with other rows are trimmed

The chain has three shapes. In one process, threads take chunks from their bytes to their features.
On Ray, actors do the same. With GPUs, tasks decode and actors run the network, for a GPU would wait
for the decoder.

An item whose digest is stored under another id is copied instead of computed again. What a killed
run has written is used by the next run. `visrec.features.planning` and `visrec.features.commit`
have the first and the last step, and `visrec.features.fetch` the first half of the chain.

Shapes: B pictures, H height, W width, C channels, D features.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from visrec.config import check_fields
from visrec.features.backbones import Backbone, BackboneConfig, load_backbone
from visrec.features.commit import write_fetched, write_part, write_rejected
from visrec.features.containers import PictureError
from visrec.features.decode import PictureLimits, Preprocessing, decode
from visrec.features.fetch import (
    REUSE,
    Picture,
    as_batch,
    fetch_chunk,
    fetch_unchanged_but_needed,
    mark_reused,
    objects,
)
from visrec.features.planning import ExtractionPlan
from visrec.features.pooling import combine_digests, pool_features
from visrec.features.table import Identity, read_features_at
from visrec.ids import TEXT, index_in
from visrec.progress import ProgressHandle, Timer
from visrec.sources.views import item_starts
from visrec.storage.arrow_values import any_true
from visrec.storage.schemas import FETCHED, REJECTED
from visrec.storage.store import Store
from visrec.tasks import Ref, get

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.util.placement_group import PlacementGroup

# Memory of a decoding task: the largest picture within the default limits, and a chunk of pixels.
_DECODE_BYTES = 512 << 20
_PART_ROWS = 4096  # 10 MB of float16 features at D = 1280
_IN_FLIGHT = 2  # chunks of a process: one is fetched while another is computed
_POOLED = "pooled"  # in the column `reason`: the feature of the item is in another row

Batch: TypeAlias = dict[str, npt.NDArray[Any]]  # columns of different types
InputBatch: TypeAlias = Any  # a `Batch`; Ray Data types the argument of a step as a union


@dataclass(frozen=True, kw_only=True)
class ExtractResources:
    """Workers that run the network, and the resources of each.

    Attributes:
        workers: number of processes that run the network; by default one per GPU with `use_gpu`,
            otherwise one per CPU of the cluster but one (at most 16). A local job without a GPU
            runs it in its own process, on all cores, unless this is set.
        use_gpu: one GPU for each worker.
        cpus_per_worker: CPU cores of each worker, and on a CPU the number of pictures that it
            decodes and of batches that it computes at once. Each batch is computed on one thread,
            so that features do not depend on this number.
    """

    workers: int | None = None
    use_gpu: bool = False
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "resources", workers="[1, 65536]", cpus_per_worker="[1, 65536]")

    @property
    def task_cpus(self) -> int:
        """CPUs in addition to those of the workers: for tasks that write, and with GPUs for some
        that decode."""
        return 2 if self.use_gpu else 1

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources of one worker, as Ray names them."""
        gpus = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}


@dataclass(frozen=True, kw_only=True)
class ExtractionContext:
    """What the steps of an extraction share.

    Attributes:
        plan: the plan.
        store: the features directory.
        backbone: the network.
        identity: the identity of the features.
        preprocessing: the preprocessing of the network.
        limits: larger pictures are rejected.
        resources: what the workers that run the network request.
        progress_actor: counts the rows of each step.
    """

    plan: Ref
    store: Store
    backbone: BackboneConfig
    identity: Identity
    preprocessing: Preprocessing
    limits: PictureLimits
    resources: ExtractResources
    progress_actor: ProgressHandle


def describe_backbone(config: BackboneConfig) -> tuple[Identity, Preprocessing]:
    """The identity and preprocessing of a backbone, which is loaded for this.

    Call it in a Ray task: weights may be too large for the driver.
    """
    return describe(load_backbone(config))


def describe(backbone: Backbone) -> tuple[Identity, Preprocessing]:
    """The identity and preprocessing of a loaded backbone."""
    identity = Identity(
        backbone=backbone.name,
        weights_digest=backbone.weights_digest,
        preprocessing=backbone.preprocessing.to_dict(),
        precision=backbone.precision,
        dim=backbone.dim,
    )
    return identity, backbone.preprocessing


def extract_chain(
    extraction: ExtractionContext, chunks: int, workers: "PlacementGroup"
) -> "Dataset":
    """The chain over the pending pictures on Ray; its rows name the files that were written.

    Args:
        extraction: what the steps share.
        chunks: number of chunks of pictures to read.
        workers: one bundle per worker that runs the network. The tasks run wherever a CPU is free.
    """
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources = extraction.resources
    numbers = ray.data.range(chunks, override_num_blocks=chunks)
    # A chunk stays one block, whatever its size: no item may be in two batches of the network.
    numbers.context.target_max_block_size = None
    in_workers: dict[str, Any] = {
        "num_cpus": resources.cpus_per_worker,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(workers),
    }
    if resources.use_gpu:
        pixels = numbers.map_batches(
            # The memory request also keeps decoding out of the network's processes: Ray Data fuses
            # steps that request the same resources.
            FetchAndDecode(extraction),
            batch_size=1,
            num_cpus=1,
            memory=_DECODE_BYTES,
        )
        features = pixels.map_batches(
            Embed,
            fn_constructor_args=(extraction,),
            batch_size=None,
            compute=ActorPoolStrategy(size=workers.bundle_count),
            num_gpus=1,
            **in_workers,
        )
    else:
        features = numbers.map_batches(
            ExtractChunk,
            fn_constructor_args=(extraction, resources.cpus_per_worker),
            batch_size=1,
            compute=ActorPoolStrategy(
                size=workers.bundle_count,
                max_concurrent_calls_per_actor=_IN_FLIGHT,
                enable_true_multi_threading=True,
            ),
            **in_workers,
        )
    return features.map_batches(WriteParts(extraction), batch_size=_PART_ROWS, num_cpus=1)


def extract_in_process(
    extraction: ExtractionContext, chunks: int, threads: int, backbone: Backbone
) -> Iterator[dict[str, Any]]:
    """The chain over the pending pictures in this process; rows as of `extract_chain`.

    Args:
        extraction: what the steps share.
        chunks: number of chunks of pictures to read.
        threads: the number of threads that decode and run the network.
        backbone: the network.
    """
    extract, write = ExtractChunk(extraction, threads, backbone), WriteParts(extraction)
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        batches = pool.map(extract, ({"id": np.array([number])} for number in range(chunks)))
        for part in _rebatch(batches):
            columns = write(part)
            for values in zip(*(each.tolist() for each in columns.values()), strict=True):
                yield dict(zip(columns, values, strict=True))


def _rebatch(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows in batches of about a part, of whole chunks."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(each["item_id"]) for each in waiting) >= _PART_ROWS:
            yield _concatenate(waiting)
            waiting = []
    if waiting:
        yield _concatenate(waiting)


def _concatenate(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}


def _single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each compute a batch of their own, on which torch starts no others."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


class ExtractChunk:
    """The number of a chunk in, features of its items out, as from `Embed`.

    Args:
        extraction: what the steps share.
        threads: the number of threads that decode and run the network.
        backbone: the network; by default it is loaded.
    """

    def __init__(
        self, extraction: ExtractionContext, threads: int, backbone: Backbone | None = None
    ) -> None:
        pool = _single_threaded_pool(threads)
        self._fetch_and_decode = FetchAndDecode(extraction, pool)
        self._embed = Embed(extraction, pool, backbone)

    def __call__(self, batch: InputBatch) -> Batch:
        return self._embed(self._fetch_and_decode(batch))


@dataclass(frozen=True)
class FetchAndDecode:
    """Chunk numbers in; one row a picture out, the pictures of an item together, with pixels.

    A rejected picture has a `reason`. The pictures of an item whose feature is on disk have the
    reason `reuse`. Both have blank pixels. `address`, `etag` and `last_modified` are those of a
    picture at an http address, if its server may be asked whether it has changed.
    """

    extraction: ExtractionContext
    pool: ThreadPoolExecutor | None = None

    def __call__(self, batch: InputBatch) -> Batch:
        timer = Timer(self.extraction.progress_actor)
        plan: ExtractionPlan = get(self.extraction.plan)
        start, end = plan.chunks[int(batch["id"][0]) :][:2]
        rows = plan.pending.slice(start, end - start)
        max_bytes = self.extraction.limits.max_bytes
        with timer.phase("fetch"):
            pictures = fetch_chunk(rows, max_bytes)
        mark_reused(pictures, plan.stored["digest"])
        with timer.phase("fetch"):
            fetch_unchanged_but_needed(pictures, rows, max_bytes)
        pixels_BHWC, seconds = self._decode(pictures)
        # Decoding may have rejected a view; the remaining views may be those of a stored feature.
        mark_reused(pictures, plan.stored["digest"])
        timer.report(decode_s=seconds)
        unchanged_B = np.array([picture.is_unchanged for picture in pictures], np.int64)
        return {"pixels": pixels_BHWC, "unchanged": unchanged_B, **as_batch(pictures)}

    def _decode(self, pictures: list[Picture]) -> tuple[npt.NDArray[np.uint8], float]:
        """(B, H, W, C) pixels of the pictures that have any, and the seconds of all threads.

        The others get a reason.
        """
        preprocessing, limits = self.extraction.preprocessing, self.extraction.limits
        pixels_BHWC = np.zeros((len(pictures), *preprocessing.shape), np.uint8)

        def decode_one(b: int) -> float:
            start, picture = perf_counter(), pictures[b]
            if not picture.reason and picture.data is not None:
                try:
                    pixels_BHWC[b] = decode(picture.data, preprocessing, limits)
                except PictureError as error:
                    picture.reject(error.reason, error.detail)
            return perf_counter() - start

        decode_all = self.pool.map if self.pool else map
        return pixels_BHWC, sum(decode_all(decode_one, range(len(pictures))))


class Embed:
    """Pixels in, features of items out; each worker loads the network once.

    The first picture of an item gets its feature, digest and source. The others that were used get
    the reason `pooled`.

    Args:
        extraction: what the steps share.
        pool: threads that run the network; by default one.
        backbone: the network; by default it is loaded.
    """

    def __init__(
        self,
        extraction: ExtractionContext,
        pool: ThreadPoolExecutor | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        self._pool = pool or _single_threaded_pool(1)
        self._progress_actor = extraction.progress_actor
        timer = Timer(self._progress_actor)
        if backbone is None:
            with timer.phase("load"):
                device = "cuda" if extraction.resources.use_gpu else "cpu"
                backbone = load_backbone(extraction.backbone, device)
            timer.report()
        self._backbone = backbone

    def __call__(self, batch: Batch) -> Batch:
        timer = Timer(self._progress_actor)
        pixels_BHWC = batch.pop("pixels")
        to_embed = np.flatnonzero(batch["reason"] == "")
        feature_BD = np.zeros((len(pixels_BHWC), self._backbone.dim), np.float16)
        pixels = torch.from_numpy(np.array(pixels_BHWC[to_embed]))
        parts = self._pool.map(self._run, torch.split(pixels, self._backbone.batch))
        features, seconds = zip(*parts, strict=True)
        feature_BD[to_embed] = np.concatenate(features)
        is_finite_B = np.isfinite(feature_BD).all(axis=1)
        batch |= {name: batch[name].astype(object) for name in ("reason", "detail")}
        batch["reason"][~is_finite_B] = "feature_not_finite"
        batch["detail"][~is_finite_B] = "the network's output does not fit into float16"
        computed_B = np.zeros(len(pixels_BHWC), np.int64)
        computed_B[to_embed] = 1
        timer.report(rows=len(pixels_BHWC), network=len(to_embed), network_s=sum(seconds))
        return {**pool_items(batch, feature_BD), "computed": computed_B}

    def _run(self, pixels_BHWC: torch.Tensor) -> tuple[npt.NDArray[np.float32], float]:
        """The features of a batch, and the seconds that they took."""
        start = perf_counter()
        feature_BD = self._backbone(pixels_BHWC).cpu().numpy()
        return feature_BD, perf_counter() - start


def pool_items(batch: Batch, feature_BD: npt.NDArray[np.float16]) -> Batch:
    """Gives the first good picture of each item the item's feature, digest and source.

    Args:
        batch: a batch with the columns item_id, digest, source and reason; all pictures of an item.
        feature_BD: (B, D) features of the pictures.
    """
    # Columns of type object take texts of any length.
    reason, digest, source = (batch[n].astype(object) for n in ("reason", "digest", "source"))
    feature_BD = feature_BD.copy()
    starts = item_starts(pa.array(batch["item_id"], TEXT)).tolist()
    for start, end in zip(starts, [*starts[1:], len(reason)], strict=True):
        good = [b for b in range(start, end) if reason[b] in ("", REUSE)]
        if len(good) > 1:
            first, *others = good
            sources = [batch["source"][b] for b in good]
            digest[first] = combine_digests([batch["digest"][b] for b in good])
            source[first] = "" if "" in sources else combine_digests(sources)
            feature_BD[first] = pool_features(feature_BD[good])
            reason[others] = _POOLED
    item = {"item_digest": digest, "item_source": source}
    return {**batch, **item, "reason": reason, "feature": feature_BD}


@dataclass(frozen=True)
class WriteParts:
    """Features in; out come the names of the written files, how many pictures the network has seen,
    and how many pictures were unchanged on their servers."""

    extraction: ExtractionContext

    def __call__(self, batch: InputBatch) -> Batch:
        timer = Timer(self.extraction.progress_actor)
        feature_BD = np.array(batch.pop("feature"))
        counts = {name: int(batch.pop(name).sum()) for name in ("computed", "unchanged")}
        rows = pa.table({name: pa.array(values, TEXT) for name, values in batch.items()})
        for name in ("view", "source", "item_source", "etag", "last_modified"):
            rows = rows.set_column(rows.column_names.index(name), name, _nulls(rows[name]))
        with timer.phase("write"):
            names = list(self._write(rows, batch["reason"], feature_BD))
        timer.report()
        # The numbers come without a name: there may be no file, if all features are in others.
        zeros = [0] * len(names)
        columns = {name: np.array([*zeros, count], np.int64) for name, count in counts.items()}
        return {"name": objects([*names, ""]), **columns}

    def _write(
        self,
        rows: pa.Table,
        reason_B: npt.NDArray[np.object_],
        feature_BD: npt.NDArray[np.float16],
    ) -> Iterator[str]:
        """Writes features, rejections, and what is known of addresses; gives the files' names."""
        store, identity = self.extraction.store, self.extraction.identity
        is_reused_B, is_pooled_B = reason_B == REUSE, reason_B == _POOLED
        is_good_B = (reason_B == "") | is_reused_B
        if is_reused_B.any():
            digests = rows["item_digest"].filter(pa.array(is_reused_B))
            feature_BD[is_reused_B] = self._stored_features(digests)
        if is_good_B.any():
            items = rows.filter(pa.array(is_good_B))
            part = pa.table(
                [items[name] for name in ("item_id", "item_digest", "item_source")],
                ["item_id", "digest", "source"],
            )
            yield write_part(store, part, feature_BD[is_good_B], identity)
        is_rejected_B = ~(is_good_B | is_pooled_B)
        if is_rejected_B.any():
            rejected = rows.filter(pa.array(is_rejected_B)).select(REJECTED.names)
            yield write_rejected(store, rejected, identity)
        is_known = pc.or_(pc.is_valid(rows["etag"]), pc.is_valid(rows["last_modified"]))
        if any_true(is_known):
            blank = pa.array(np.where(is_rejected_B, reason_B, ""), TEXT)
            known = rows.set_column(rows.column_names.index("reason"), "reason", blank)
            yield write_fetched(store, known.filter(is_known).select(FETCHED.names), identity)

    def _stored_features(self, digests: pa.ChunkedArray) -> npt.NDArray[np.float16]:
        """The features on disk for items of these digests."""
        plan: ExtractionPlan = get(self.extraction.plan)
        rows = plan.stored.take(index_in(digests, plan.stored["digest"]))
        store, dim = self.extraction.store, self.extraction.identity.dim
        return read_features_at(store, plan.parts, rows, dim)


def _nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with nulls in place of empty texts, which is how NumPy's columns have them."""
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, TEXT), column)
