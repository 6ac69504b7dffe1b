"""Tiny checkpoints of today's families give what the whole model and its own processor give."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from visrec.errors import InputError
from visrec.features.backbones import Backbone, BackboneConfig, Precision, load_backbone
from visrec.features.decode import PictureLimits, decode

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
TEXTS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 4, "vocab_size": 99, "max_position_embeddings": 8,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
NORMALIZATION = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.5]}
SQUARE = {"height": 32, "width": 32}
# As the hub has it: there is no processor for Pillow that could save it.
DINOV3 = {"image_processor_type": "DINOv3ViTImageProcessorFast", "do_resize": True, "size": SQUARE,
          "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
          "do_center_crop": None, "crop_size": None, **NORMALIZATION}  # fmt: skip
# As openai/clip-vit-base-patch32 has it.
LEGACY_CLIP = {"feature_extractor_type": "CLIPFeatureExtractor", "do_resize": True, "size": 32,
               "resample": 3, "do_center_crop": True, "crop_size": 32, "do_normalize": True,
               **NORMALIZATION}  # fmt: skip
Expected = Callable[[Any, Image.Image], Tensor]


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint, and what transformers alone gives for a picture."""

    model: Callable[[], Any]
    processor: Any
    dim: int
    expected: Expected


def image_features(processor: Any) -> Expected:
    """What `get_image_features` gives for the processor's own pixels."""

    def expected(model: Any, picture: Image.Image) -> Tensor:
        inputs = processor(picture, return_tensors="pt")
        pooled: Tensor = model.get_image_features(**inputs).pooler_output
        return pooled

    return expected


def exact_size(picture: Image.Image) -> dict[str, Tensor]:
    """DINOv3's preprocessing: rescaled, resized in floats with antialiasing, normalized."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(values, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in NORMALIZATION.values())
    return {"pixel_values": (small - mean) / std}


def class_token(prepare: Callable[[Image.Image], Any]) -> Expected:
    def expected(model: Any, picture: Image.Image) -> Tensor:
        token: Tensor = model(**prepare(picture)).last_hidden_state[:, 0]
        return token

    return expected


def projection(model: Any, picture: Image.Image) -> Tensor:
    embeds: Tensor = model(**CLIP(picture, return_tensors="pt")).image_embeds
    return embeds


CLIP = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE, **NORMALIZATION)
SIGLIP = SiglipImageProcessorPil(size=SQUARE, resample=2, **NORMALIZATION)
NAFLEX = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20)
BIT = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE, **NORMALIZATION)
NAFLEX_VISION = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}

FAMILIES = {
    "clip": Family(
        lambda: CLIPModel(
            CLIPConfig(vision_config=VISION, text_config=TEXTS, projection_dim=24)
        ), CLIP, 24, image_features(CLIP),
    ),
    "clip, saved by OpenAI": Family(
        lambda: CLIPModel(
            CLIPConfig(vision_config=VISION, text_config=TEXTS, projection_dim=24)
        ), LEGACY_CLIP, 24, image_features(CLIP),
    ),
    "clip, vision half": Family(
        lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=24)),
        CLIP, 24, projection,
    ),
    "siglip2": Family(
        lambda: SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXTS)),
        SIGLIP, 32, image_features(SIGLIP),
    ),
    "siglip2, naflex": Family(
        lambda: Siglip2Model(Siglip2Config(vision_config=NAFLEX_VISION, text_config=TEXTS)),
        NAFLEX, 32, image_features(NAFLEX),
    ),
    "dinov2": Family(
        lambda: Dinov2Model(
            Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2,
                         image_size=32, patch_size=8)
        ), BIT, 32, class_token(lambda picture: BIT(picture, return_tensors="pt")),
    ),
    "dinov3": Family(
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**VISION, num_register_tokens=4)),
        DINOV3, 32, class_token(exact_size),
    ),
    "dinov3, convnext": Family(
        lambda: DINOv3ConvNextModel(
            DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        ), DINOV3, 32, class_token(exact_size),
    ),
}  # fmt: skip


def save(folder: Path, family: Family, seed: int = 0) -> str:
    torch.manual_seed(seed)
    family.model().save_pretrained(folder)
    if isinstance(family.processor, dict):
        (folder / "preprocessor_config.json").write_text(json.dumps(family.processor))
    else:
        family.processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: save(folder / name, family) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth pictures of many shapes, saved without loss; the first is square."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    sizes = [(64, 64), (90, 47), (40, 130), (300, 60), (61, 62), (33, 200), (128, 96)]
    paths = [folder / f"{width}x{height}.png" for width, height in sizes]
    for path, size in zip(paths, sizes, strict=True):
        noise = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return paths


def features(backbone: Backbone, paths: list[Path]) -> Tensor:
    decoded = [decode(p.read_bytes(), backbone.preprocessing, PictureLimits()) for p in paths]
    return backbone(torch.from_numpy(np.stack(decoded)))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_those_of_the_whole_model_and_its_own_processor(
    checkpoints: dict[str, str], pictures: list[Path], name: str
) -> None:
    family = FAMILIES[name]
    backbone = load_backbone(BackboneConfig(name=checkpoints[name], precision="float32"))
    torch.manual_seed(0)
    model = family.model().from_pretrained(checkpoints[name]).eval()
    with torch.no_grad():
        expected = [family.expected(model, Image.open(path))[0] for path in pictures]
    found = features(backbone, pictures)
    assert found.shape == (len(pictures), backbone.dim) == (len(pictures), family.dim)
    # Both round pixels to 256 steps, but not at the same places.
    scale = torch.stack(expected).std()
    torch.testing.assert_close(found, torch.stack(expected), rtol=0.0, atol=0.05 * float(scale))
    cosine = torch.cosine_similarity(found, torch.stack(expected))
    assert cosine.min() > 0.9999


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "bfloat16") for name in FAMILIES), ("siglip2, naflex", "float32")],
)
def test_feature_does_not_depend_on_the_other_pictures(
    checkpoints: dict[str, str], pictures: list[Path], name: str, precision: Precision
) -> None:
    config = BackboneConfig(name=checkpoints[name], precision=precision, batch=4)
    backbone = load_backbone(config)
    everything = features(backbone, pictures)
    # The square pictures alone fill their grids: no patch of theirs is padding.
    assert torch.equal(features(backbone, [pictures[0]] * 4)[2], everything[0])
    assert torch.equal(features(backbone, [pictures[5], pictures[2]]), everything[[5, 2]])


@pytest.mark.parametrize("name", ["clip", "dinov3"])
def test_weights_digest_is_that_of_the_weights_alone(
    checkpoints: dict[str, str], tmp_path: Path, name: str
) -> None:
    digest = load_backbone(BackboneConfig(name=checkpoints[name])).weights_digest
    shutil.copytree(checkpoints[name], tmp_path / "moved")
    moved = load_backbone(BackboneConfig(name=str(tmp_path / "moved")))
    other = load_backbone(BackboneConfig(name=save(tmp_path / "other", FAMILIES[name], seed=1)))
    assert moved.weights_digest == digest
    assert other.weights_digest != digest


def test_other_text_half_of_clip_gives_the_same_weights_digest(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    model = CLIPModel.from_pretrained(checkpoints["clip"])
    torch.nn.init.normal_(model.text_projection.weight)
    model.save_pretrained(tmp_path)
    CLIP.save_pretrained(tmp_path)
    digests = {
        load_backbone(BackboneConfig(name=name)).weights_digest
        for name in (checkpoints["clip"], str(tmp_path))
    }
    assert len(digests) == 1


# ---------------------------------------------------------------------------------------- revisions


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id with two revisions in the hub's cache, as huggingface_hub lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--shop--tiny"
    (folder / "refs").mkdir(parents=True)
    for seed, ref in enumerate(("main", "v2")):
        commit = hashlib.sha1(ref.encode(), usedforsecurity=False).hexdigest()
        save(folder / "snapshots" / commit, FAMILIES["clip"], seed)
        (folder / "refs" / ref).write_text(commit)
    return "shop/tiny"


def test_revision_of_a_hub_id_is_loaded_and_is_part_of_the_name(hub: str) -> None:
    if "HF_HUB_CACHE" in os.environ or "HF_HOME" in os.environ:
        pytest.skip("The environment names another cache of the hub.")
    first = load_backbone(BackboneConfig(name=hub))
    second = load_backbone(BackboneConfig(name=hub, revision="v2"))
    again = load_backbone(BackboneConfig(name=hub, revision="main"))
    assert (first.name, second.name) == ("shop/tiny", "shop/tiny@v2")
    assert first.weights_digest == again.weights_digest != second.weights_digest


def test_revision_that_does_not_exist_is_refused(hub: str) -> None:
    with pytest.raises(InputError, match=r"--backbone\.revision"):
        load_backbone(BackboneConfig(name=hub, revision="v3"))


def test_revision_of_a_directory_or_of_a_built_in_backbone_is_refused(
    checkpoints: dict[str, str],
) -> None:
    with pytest.raises(InputError, match="no revision 'v2'"):
        load_backbone(BackboneConfig(name=checkpoints["clip"], revision="v2"))
    with pytest.raises(InputError, match=r"--backbone\.revision v2"):
        load_backbone(BackboneConfig(name="random-conv", revision="v2"))
