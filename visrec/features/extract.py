"""The Ray Data steps from pictures to features.

    plan    compares the listed pictures with the features on disk: only new and changed are read
    chain   tasks fetch, hash and decode (uint8 pixels); actors run the network; tasks write parts
    commit  moves the manifest to exactly the listed pictures; parts with other rows are trimmed

A picture whose digest is stored under another id is copied instead of computed again. What a killed
run has written is used by the next run. `visrec.features.planning` and `visrec.features.commit`
have the first and the last step.

Shapes: B pictures, H height, W width, C channels, D features.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from visrec.config import check_fields
from visrec.errors import StorageError
from visrec.features.backbones import BackboneConfig, load_backbone
from visrec.features.commit import write_part, write_rejected
from visrec.features.containers import PictureError
from visrec.features.decode import PictureLimits, Preprocessing, decode
from visrec.features.planning import ExtractionPlan
from visrec.features.table import Identity, read_features_at
from visrec.ids import TEXT, index_in, is_in
from visrec.progress import ProgressHandle, Timer
from visrec.sources.images import fetch_pictures
from visrec.storage.store import Store

# Pictures per task: 64 x 224 x 224 x 3 bytes are a block of 10 MB, and fetching and decoding them
# takes about half a second on one core.
CHUNK = 64
# Memory of a decoding task: the largest picture within the default limits, and a chunk of pixels.
_DECODE_BYTES = 512 << 20
_PART_ROWS = 4096  # 10 MB of float16 features at D = 1280
_REUSE = "reuse"  # in the column `reason`: the feature of these bytes is on disk already

Batch: TypeAlias = dict[str, npt.NDArray[Any]]  # columns of different types
InputBatch: TypeAlias = Any  # a `Batch`; Ray Data types the argument of a step as a union


@dataclass(frozen=True, kw_only=True)
class ExtractResources:
    """Workers that run the network, and the resources of each.

    Attributes:
        workers: number of processes that run the network; by default one per GPU with `use_gpu`,
            otherwise one per two CPUs of the cluster (at most 8).
        use_gpu: one GPU for each worker.
        cpus_per_worker: CPU cores of each worker, and on a CPU the number of batches that its
            network computes at once. Each batch is computed on one thread, so that features do not
            depend on this number.
    """

    workers: int | None = None
    use_gpu: bool = False
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "resources", workers="[1, 65536]", cpus_per_worker="[1, 65536]")

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources of one worker, as Ray names them."""
        gpus = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What the steps of an extraction share.

    Attributes:
        plan: the plan in Ray's object store.
        store: the features directory.
        backbone: the network.
        identity: of the features.
        preprocessing: of the network.
        limits: larger pictures are rejected.
        resources: of the workers that run the network.
        progress_actor: counts the rows of each step.
    """

    plan: "ray.ObjectRef[ExtractionPlan]"
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
    backbone = load_backbone(config)
    identity = Identity(
        backbone=backbone.name,
        weights_digest=backbone.weights_digest,
        preprocessing=backbone.preprocessing.to_dict(),
        precision=backbone.precision,
        dim=backbone.dim,
    )
    return identity, backbone.preprocessing


def extract_chain(extraction: Extraction, pending: int, workers: PlacementGroup) -> Dataset:
    """The chain over the pending pictures; its rows name the files that were written.

    Args:
        extraction: what the steps share.
        pending: number of pictures to read.
        workers: one bundle per worker that runs the network. The tasks run wherever a CPU is free.
    """
    chunks = -(-pending // CHUNK)
    resources = extraction.resources
    return (
        ray.data.range(chunks, override_num_blocks=chunks)
        # The memory request also keeps decoding out of the network's processes: Ray Data fuses
        # steps that request the same resources.
        .map_batches(FetchAndDecode(extraction), batch_size=1, num_cpus=1, memory=_DECODE_BYTES)
        .map_batches(
            Embed,
            fn_constructor_args=(extraction.backbone, resources, extraction.progress_actor),
            batch_size=CHUNK,
            compute=ActorPoolStrategy(size=workers.bundle_count),
            num_cpus=resources.cpus_per_worker,
            num_gpus=1 if resources.use_gpu else None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(workers),
        )
        .map_batches(WriteParts(extraction), batch_size=_PART_ROWS, num_cpus=1)
    )


@dataclass(frozen=True)
class FetchAndDecode:
    """Chunk numbers in; item_id, source, digest, pixels, reason and detail out.

    A rejected picture has a reason. A picture whose feature is on disk has the reason `reuse`. Both
    have blank pixels.
    """

    extraction: Extraction

    def __call__(self, batch: InputBatch) -> Batch:
        timer = Timer(self.extraction.progress_actor)
        plan: ExtractionPlan = ray.get(self.extraction.plan)
        rows = plan.pending.slice(int(batch["id"][0]) * CHUNK, CHUNK)
        with timer.phase("fetch"):
            fetched = fetch_pictures(rows)
        digests = [
            "" if isinstance(data, StorageError) else hashlib.sha256(data).hexdigest()
            for data in fetched
        ]
        is_stored_B = is_in(pa.array(digests, TEXT), plan.stored["digest"]).to_pylist()
        with timer.phase("decode"):
            decoded = self._decode(fetched, is_stored_B)
        timer.report()
        return {
            "item_id": _objects(rows["item_id"].to_pylist()),
            # NumPy would turn a column of nothing but None into floats.
            "source": _objects([source or "" for source in rows["source"].to_pylist()]),
            "digest": _objects(digests),
            **decoded,
        }

    def _decode(self, fetched: list[bytes | StorageError], is_stored_B: list[bool]) -> Batch:
        """(B, H, W, C) pixels, with the reason and detail of each picture without pixels."""
        preprocessing, limits = self.extraction.preprocessing, self.extraction.limits
        pixels_BHWC = np.zeros((len(fetched), *preprocessing.shape), np.uint8)
        reasons, details = [""] * len(fetched), [""] * len(fetched)
        for b, data in enumerate(fetched):
            try:
                if is_stored_B[b]:
                    reasons[b] = _REUSE
                elif isinstance(data, StorageError):
                    raise PictureError("unreadable", str(data))
                else:
                    pixels_BHWC[b] = decode(data, preprocessing, limits)
            except PictureError as error:
                reasons[b], details[b] = error.reason, error.detail
        return {"pixels": pixels_BHWC, "reason": _objects(reasons), "detail": _objects(details)}


def _objects(values: list[Any]) -> npt.NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


class Embed:
    """Pixels in, features out; each worker loads the network once."""

    def __init__(
        self, config: BackboneConfig, resources: ExtractResources, progress_actor: ProgressHandle
    ) -> None:
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(1 if resources.use_gpu else resources.cpus_per_worker)
        self._timer = Timer(progress_actor)
        with self._timer.call("load"):
            self._backbone = load_backbone(config, "cuda" if resources.use_gpu else "cpu")

    def __call__(self, batch: Batch) -> Batch:
        with self._timer.call():
            return self._embed(batch)

    def _embed(self, batch: Batch) -> Batch:
        pixels_BHWC = batch.pop("pixels")
        to_embed = np.flatnonzero(batch["reason"] == "")
        feature_BD = np.zeros((len(pixels_BHWC), self._backbone.dim), np.float16)
        with self._timer.phase("network"):
            pixels = torch.from_numpy(np.array(pixels_BHWC[to_embed]))
            parts = self._pool.map(self._backbone, torch.split(pixels, self._backbone.batch))
            feature_BD[to_embed] = torch.cat(list(parts)).cpu().numpy()
        is_finite_B = np.isfinite(feature_BD).all(axis=1)
        reason, detail = batch["reason"].copy(), batch["detail"].copy()
        reason[~is_finite_B] = "feature_not_finite"
        detail[~is_finite_B] = "the network's output does not fit into float16"
        self._timer.report(rows=len(pixels_BHWC), network=len(to_embed))
        return {**batch, "reason": reason, "detail": detail, "feature": feature_BD}


@dataclass(frozen=True)
class WriteParts:
    """Features in; out come the names of the written files and how many features were computed."""

    extraction: Extraction

    def __call__(self, batch: InputBatch) -> Batch:
        timer = Timer(self.extraction.progress_actor)
        store, identity = self.extraction.store, self.extraction.identity
        feature_BD = np.array(batch.pop("feature"))
        batch["source"] = _objects([source or None for source in batch["source"]])
        rows = pa.table({name: pa.array(values, TEXT) for name, values in batch.items()})
        reused = np.flatnonzero(batch["reason"] == _REUSE)
        if len(reused):
            feature_BD[reused] = self._stored_features(rows["digest"].take(reused))
        is_good_B = (batch["reason"] == "") | (batch["reason"] == _REUSE)
        names, counts = [], []
        with timer.phase("write"):
            if is_good_B.any():
                part = rows.filter(pa.array(is_good_B))
                names.append(write_part(store, part, feature_BD[is_good_B], identity))
                counts.append(int(is_good_B.sum()) - len(reused))
            if not is_good_B.all():
                part = rows.filter(pa.array(~is_good_B))
                names.append(write_rejected(store, part, identity))
                counts.append(0)
        timer.report()
        return {"name": _objects(names), "computed": np.array(counts, np.int64)}

    def _stored_features(self, digests: pa.ChunkedArray) -> npt.NDArray[np.float16]:
        """The features on disk for pictures of these digests."""
        plan: ExtractionPlan = ray.get(self.extraction.plan)
        rows = plan.stored.take(index_in(digests, plan.stored["digest"]))
        store, dim = self.extraction.store, self.extraction.identity.dim
        return read_features_at(store, plan.parts, rows, dim)
