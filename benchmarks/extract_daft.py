"""The extraction as a Daft job: pictures of a folder to a Parquet file of features.

python -m benchmarks.extract_daft FOLDER TARGET POINTS

It is Daft at its best on a CPU: its own reader, JPEG decoder and resize, and visrec's network in a
class with one process for each core, batches of 64, one thread each. Into the file POINTS each
process writes a line for each batch: the clock, and the number of pictures.
"""

import os
import sys
import time

import daft
import torch
from daft import DataType, Series, col

from visrec.features.backbones import BackboneConfig, load_backbone

SIDE, BATCH = 224, 64
FEATURES = DataType.fixed_size_list(DataType.float32(), 1280)


@daft.cls(max_concurrency=os.cpu_count() or 1, use_process=True)
class Network:
    """visrec's default network."""

    def __init__(self, points: str) -> None:
        torch.set_num_threads(1)
        self.backbone = load_backbone(BackboneConfig())
        self.points = points

    @daft.method.batch(return_dtype=FEATURES, batch_size=BATCH)
    def embed(self, image: Series) -> Series:
        pixels = image.to_arrow().storage.flatten().to_numpy(zero_copy_only=False)
        pixels_BHWC = torch.from_numpy(pixels.reshape(-1, SIDE, SIDE, 3).copy())
        feature_BD = self.backbone(pixels_BHWC).numpy()
        with open(self.points, "a") as file:
            file.write(f"{time.time()} {len(feature_BD)}\n")
        return Series.from_numpy(feature_BD).cast(FEATURES)


def main(folder: str, target: str, points: str) -> None:
    network = Network(points)  # type: ignore[call-arg]
    pictures = daft.from_glob_path(f"{folder}/*.jpg").select("path")
    images = col("path").download().decode_image(mode="RGB").resize(SIDE, SIDE)
    fixed = images.cast(DataType.image("RGB", SIDE, SIDE))
    pictures.select(col("path"), network.embed(fixed).alias("feature")).write_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
