"""What is read of a timm checkpoint; the library itself does not import beside this torch."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visrec.errors import InputError
from visrec.features.backbones import BackboneConfig, load_backbone

CONFIG = {
    "architecture": "tiny",
    "pretrained_cfg": {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.8,
                       "crop_mode": "center", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.5]},
}  # fmt: skip


class Pooled(nn.Module):
    """What `create_model` gives with num_classes=0: (B, 3, H, W) to (B, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        features: Tensor = self.conv(pixels_BCHW).mean((2, 3))
        return features


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub with the two functions that are called, by timm's documentation."""
    module: Any = ModuleType("timm")

    def create_model(architecture: str, *, num_classes: int) -> Pooled:
        assert (architecture, num_classes) == ("tiny", 0)
        return Pooled()

    def resolve_data_config(args: dict[str, Any], *, pretrained_cfg: dict[str, Any]) -> Any:
        return {**args, **pretrained_cfg}

    module.create_model = create_model
    module.data = SimpleNamespace(resolve_data_config=resolve_data_config)
    monkeypatch.setitem(sys.modules, "timm", module)


def save(folder: Path, **changes: Any) -> str:
    pretrained = {**CONFIG["pretrained_cfg"], **changes}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps({**CONFIG, "pretrained_cfg": pretrained}))
    torch.manual_seed(0)
    weights = {**Pooled().state_dict(), "fc.weight": torch.zeros(5, 8)}
    save_file(weights, folder / "model.safetensors")
    return str(folder)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("mode", "resize"), [("center", 40), ("squash", (40, 40))], ids=["center", "squash"]
)
def test_checkpoint_is_loaded_with_its_preprocessing(
    tmp_path: Path, mode: str, resize: object
) -> None:
    backbone = load_backbone(BackboneConfig(name=save(tmp_path, crop_mode=mode)))
    preprocessing = backbone.preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (resize, (32, 32))
    assert preprocessing.interpolation == "bicubic"
    assert preprocessing.mean == pytest.approx([127.5, 102.0, 76.5])
    assert preprocessing.std == pytest.approx([51.0, 76.5, 127.5])
    torch.manual_seed(0)
    expected = Pooled()(torch.full((1, 3, 32, 32), 0.0))
    mean = torch.tensor(preprocessing.mean).round().byte().expand(1, 32, 32, 3)
    assert backbone.dim == 8
    torch.testing.assert_close(backbone(mean), expected, rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("timm")
def test_transform_that_no_preprocessing_expresses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crop_mode is border"):
        load_backbone(BackboneConfig(name=save(tmp_path, crop_mode="border")))


@pytest.mark.usefixtures("timm")
def test_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    name = save(tmp_path)
    save_file({"fc.weight": torch.zeros(5, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"its weights lack conv\.bias"):
        load_backbone(BackboneConfig(name=name))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "is not JSON \\(Expecting property name"),
        (b"\xff", "is not JSON \\('utf-8' codec"),
        (b"[]", "is not a JSON object"),
        (b"5", "is not a JSON object"),
        (b'["architecture"]', "is not a JSON object"),
    ],
)
def test_malformed_configuration_of_a_directory_is_refused(
    tmp_path: Path, text: bytes, why: str
) -> None:
    name = save(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=rf"cannot be used: {name}/config\.json {why}"):
        load_backbone(BackboneConfig(name=name))


@pytest.mark.parametrize("error", [ImportError("no timm"), RuntimeError("no operator nms")])
def test_missing_or_broken_timm_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "timm":
                raise error

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for name in ("timm/resnet50.a1_in1k", save(tmp_path)):
        with pytest.raises(InputError, match=f"package timm.*{error}"):
            load_backbone(BackboneConfig(name=name))
