"""The parts of the extraction benchmark whose answer is known, and its chain at toy size."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.extract import Pictures, chain_rate, decoders, limit, montages, steady
from visrec.features.backbones import BackboneConfig, load_backbone
from visrec.pipelines.extract_features import ExtractJob

TOY = BackboneConfig(name="random-conv", precision="float32", batch=2)


def painted(number: int) -> bytes:
    """A JPEG of 128 x 96 with a wave that only this number has."""
    x = np.arange(128) * (number + 1) / 20
    pixels = np.broadcast_to((127 + 120 * np.sin(x))[None, :, None], (96, 128, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


FILES = [painted(number) for number in range(9)]


def test_the_steady_rate_knows_neither_the_start_nor_the_end() -> None:
    # Ten seconds of nothing, then 5 pictures a second, then a last tenth that takes for ever.
    points = [(10 + n / 10, n // 10 * 5) for n in range(200)]
    points = [(s / 10, 0) for s in range(100)] + points + [(900.0, 100)]
    assert steady(points, 100) == pytest.approx(5)


def test_nine_pictures_are_one_montage_and_the_rest_is_left_out() -> None:
    assert len(montages(FILES[:8], 3)) == 0
    [montage] = montages(FILES, 3)
    whole = Image.open(io.BytesIO(montage))
    assert whole.size == (1440, 1440)
    # The last tile is the last picture's.
    tile = np.asarray(whole.crop((960, 960, 1440, 1440)), float)
    expected = np.asarray(Image.open(io.BytesIO(FILES[8])).resize((480, 480)), float)
    assert np.abs(tile - expected).mean() < 4


def test_pillow_in_full_is_what_the_others_are_compared_with() -> None:
    found = decoders(FILES, load_backbone(TOY))
    assert found["pillow_as_is"]["cosine_worst"] == pytest.approx(1, abs=1e-5)
    assert found["pillow_draft_as_is"]["cosine_worst"] > 0.99
    drafted = found["pillow_draft_montage"]
    assert 0.9 < drafted["cosine_worst"] < 0.999999  # it was decoded at a smaller scale
    assert all(figures["pictures_per_core_s"] > 0 for figures in found.values())


def test_the_limit_adds_up_decode_and_network_over_the_cores() -> None:
    found = limit(FILES, TOY, 2)
    each = found["decode_core_s"] + found["network_core_s"]
    assert found["limit_pictures_per_s"] == pytest.approx(2 / each)
    assert min(found["decode_core_s"], found["network_core_s"]) > 0


def test_the_plain_loop_gives_the_network_what_the_package_asks_for(tmp_path: Path) -> None:
    Image.new("RGB", (50, 30), (255, 127, 0)).save(tmp_path / "a.png")
    [pixels_CHW] = list(Pictures([tmp_path / "a.png"]))[:1]
    assert pixels_CHW.shape == (3, 224, 224)
    expected = torch.tensor([1.0, 0.0, -127 / 128])
    assert torch.allclose(pixels_CHW.mean((1, 2)), expected, atol=1e-6)


def test_the_chain_is_watched_from_its_start_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(640):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(FILES[number % 9] + bytes([number % 7]))
    config = ExtractJob(workspace=str(tmp_path), local=True, backbone=TOY)
    start = time.perf_counter()
    found = chain_rate(config)
    passed = time.perf_counter() - start
    assert 0 < found["first_batch_s"] < passed
    assert found["pictures_per_s"] > 640 * 0.7 / passed
    assert 0 < found["decode_s"] * 640 < 4 * passed
