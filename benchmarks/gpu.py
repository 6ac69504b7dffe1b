"""The same work on a GPU: top-k search, a training step, and two networks. No Ray.

python -m benchmarks.gpu
python -m benchmarks.gpu --device cpu --items 2000 --users 256 --pictures 8 --seconds 0.1 --json

top-k     scores per second of the search for 100 of `--items`, against the float32 product alone
          with the search's own tile size (`share_of_product`; target 0.5)
training  triples per second of CuratorNet's steps with the jobs' defaults, on random features
networks  pictures per second from pixels on the host to features on the host, against the bare
          forward pass of the same network on the device (`share_of_forward`; target 0.9). resnet50
          has random weights, so that no hub is needed; its speed does not depend on them.

Without a GPU this measures the CPU, and the result says so.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

from benchmarks.machine import machine
from visrec.features.backbones import BackboneConfig, load_backbone
from visrec.features.table import Identity
from visrec.interactions.split import HeldOut, SplitConfig
from visrec.jagged import Jagged
from visrec.models.curatornet import CuratorNetConfig
from visrec.models.provenance import DataProvenance, InteractionsProvenance
from visrec.retrieval.torch_topk import torch_top_k
from visrec.sampling.triples import SamplingConfig
from visrec.storage.schemas import HELD_OUT
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext
from visrec.training.fit import TrainingRecipe, build_trainer
from visrec.training.loop import TrainConfig

DIM, VECTOR, TAKEN, K = 1280, 200, 20, 100
TILE = {"cuda": (2048, 65_536), "cpu": (128, 8192)}  # users and items of a tile of the search


def rate(work: Callable[[], object], amount: float, device: torch.device, seconds: float) -> float:
    """Amounts per second of some work, called for about so long, once before the clock starts."""
    work()
    _wait(device)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work()
        _wait(device)
        calls += 1
    return calls * amount / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def top_k(device: torch.device, users: int, items: int, seconds: float) -> dict[str, float]:
    """Scores per second: a user and an item are one."""
    item_Nd, user_Bd = (torch.randn(n, VECTOR, device=device) for n in (items, users))
    taken = np.random.default_rng(0).integers(0, items, users * TAKEN)
    excluded = Jagged(taken, np.arange(users + 1) * TAKEN)
    rows, columns = TILE[device.type]

    def product() -> None:
        for user_bd in user_Bd.split(rows):
            for item_Td in item_Nd.split(columns):
                user_bd @ item_Td.T

    def search() -> None:
        torch_top_k(item_Nd, user_Bd, excluded, None, K)

    found, limit = (rate(work, users * items, device, seconds) for work in (search, product))
    return {"scores_per_s": found, "product_scores_per_s": limit, "share_of_product": found / limit}


def training(device: torch.device, users: int, items: int, seconds: float) -> dict[str, float]:
    """Triples per second of the steps of an epoch."""
    random = np.random.default_rng(0)
    train = Jagged(
        random.integers(0, items, users * TAKEN).astype(np.int32), np.arange(users + 1) * TAKEN
    )
    none, nobody = np.zeros(0, np.int64), Jagged.empty(0)
    data = TrainingData(
        item_ids=pa.array([str(n) for n in range(items)]),
        user_ids=pa.array([str(n) for n in range(users)]),
        feature_ND=random.normal(size=(items, DIM)).astype(np.float16),
        train=train,
        basket_R=np.arange(users * TAKEN),
        time_R=np.arange(users * TAKEN),
        validation=HeldOut(none, nobody, nobody, none, nobody),
        validation_basket_V=none,
        test_pairs=HELD_OUT.empty_table(),
        provenance=DataProvenance(
            features_digest="random",
            features_identity=Identity(
                backbone="random",
                weights_digest="none",
                preprocessing={},
                precision="float16",
                dim=DIM,
            ),
            interactions=InteractionsProvenance(),
            items_digest=None,
            split=SplitConfig(),
        ),
    )
    config = TrainConfig(precision="bfloat16" if device.type == "cuda" else "float32")
    recipe = TrainingRecipe("curatornet", CuratorNetConfig(), config, SamplingConfig())
    trainer = build_trainer(recipe, data, WorkerContext(device=device))
    trainer.source.start_epoch(0, 1 << 30)
    steps = iter(range(1 << 20))

    def step() -> None:
        batch = trainer.source.batch(next(steps), config.batch_size, 0, 1, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = trainer.model(batch)
        trainer.optimizer.zero_grad(set_to_none=True)
        (loss * config.batch_size).backward()
        trainer.optimizer.step()

    trainer.model.train()
    return {"triples_per_s": rate(step, config.batch_size, device, seconds)}


@torch.inference_mode()
def network(name: str, device: torch.device, pictures: int, seconds: float) -> dict[str, float]:
    """Pictures per second, and the share of the bare forward pass."""
    backbone = load_backbone(BackboneConfig(name=name, batch=pictures), device.type)
    height, width = backbone.preprocessing.crop
    pixels_BHWC = torch.randint(0, 256, (pictures, height, width, 3), dtype=torch.uint8)
    normal_BCHW = torch.randn(pictures, 3, height, width, device=device)
    normal_BCHW = normal_BCHW.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            backbone.network(normal_BCHW)

    found = rate(lambda: backbone(pixels_BHWC).cpu(), pictures, device, seconds)
    limit = rate(forward, pictures, device, seconds)
    return {
        "pictures_per_s": found,
        "forward_pictures_per_s": limit,
        "share_of_forward": found / limit,
    }


def networks(device: torch.device, pictures: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ResNetModel(ResNetConfig()).save_pretrained(folder)
        ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(folder)
        return {
            "efficientnet-lite0": network("efficientnet-lite0", device, pictures, seconds),
            "resnet50": network(folder, device, pictures, seconds),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, choices=["cuda", "cpu"])
    for name, number in (("users", 8192), ("items", 100_000), ("pictures", 256)):
        parser.add_argument(f"--{name}", type=int, default=number if there == "cuda" else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="that each figure takes")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    # A CPU is not what this is for: it shows that all runs.
    users, items, pictures = args.users or 512, args.items or 10_000, args.pictures or 16
    device = torch.device(args.device)
    named = torch.cuda.get_device_name(device) if args.device == "cuda" else "no GPU: the CPU"
    print(named, flush=True)
    found: dict[str, Any] = {
        "top_k": top_k(device, users, items, args.seconds),
        "training": training(device, users, items, args.seconds),
        "networks": networks(device, pictures, args.seconds),
    }
    for name, figures in (
        ("top-k", found["top_k"]),
        ("training", found["training"]),
        *found["networks"].items(),
    ):
        shown = "  ".join(f"{key} {value:,.3g}" for key, value in figures.items())
        print(f"{name:20} {shown}")
    if args.json:
        asked = {**vars(args), "users": users, "items": items, "pictures": pictures}
        print(json.dumps({"asked": asked, "device": named, **machine(), **found}))


if __name__ == "__main__":
    main()
