"""Vision models of the transformers library, from a directory or the Hugging Face hub.

The feature of a picture is the embedding that the model's authors compare pictures by:

| family | feature |
|---|---|
| CLIP, MetaCLIP 2 | the projection into the space shared with texts (arXiv 2103.00020) |
| SigLIP, SigLIP 2 | the output of the attention pooling head (2303.15343, 2502.14786) |
| other models of pictures and texts | what `get_image_features` of transformers gives |
| DINOv2, DINOv3 ViT | the class token after the last layer norm (2304.07193, 2508.10104) |
| DINOv3 ConvNeXt | the mean of the last feature map after its layer norm |
| every other model | its trained pooler's output; without one, the mean of tokens or feature map |

Of CLIP and SigLIP only the vision half is loaded. Model classes are chosen by transformers at run
time, hence `Any`.

Shapes: B pictures, H height, W width, C channels, P patches, D features.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visrec.features.backbones.image_processor import load_image_processor, preprocessing_of
from visrec.features.backbones.network import (
    LoadedNetwork,
    digest_weights,
    first_line,
    quiet_transformers,
    unusable_backbone,
)
from visrec.features.decode import Preprocessing
from visrec.features.patch_grid import PatchGrid

_HUB_IDS = {"resnet50": "microsoft/resnet-50"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# By the model type of the whole model: the class of its vision half and projection.
_PROJECTED = {
    "clip": "CLIPVisionModelWithProjection",
    "metaclip_2": "MetaClip2VisionModelWithProjection",
}
_POOLING_HEADS = ("siglip", "siglip2")


def load_hugging_face(name: str, revision: str | None = None) -> LoadedNetwork:
    """A vision model with the preprocessing of its image processor.

    Args:
        name: a directory, a hub id, or a key of `_HUB_IDS`.
        revision: branch, tag or commit of the hub id; None for its default branch.

    Raises:
        InputError: the model cannot be loaded, lacks weights, or has an image processor that no
            `Preprocessing` expresses.
    """
    source = hub_id_or_directory(name, revision)
    try:
        with quiet_transformers():
            processor = load_image_processor(source, revision)
            model, info = _load_model(source, revision)
    except Exception as error:  # transformers raises many types for a missing model
        raise unusable_backbone(
            name, f"transformers could not load it ({first_line(error)})"
        ) from error
    # Weights that the checkpoint lacks are drawn at random, differently in every process.
    missing = set(info["missing_keys"])
    if any("pooler." not in key for key in missing):
        raise unusable_backbone(name, f"its weights lack {', '.join(sorted(missing)[:3])}")
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in missing}
    preprocessing = preprocessing_of(processor, name)
    return LoadedNetwork(
        network=_network(model, preprocessing, has_trained_pooler=not missing),
        preprocessing=preprocessing,
        weights_digest=digest_weights(state),
    )


def hub_id_or_directory(name: str, revision: str | None) -> str:
    """A directory with safetensors, or a hub id.

    Raises:
        InputError: it is neither, or a directory with a revision.
    """
    directory = Path(name)
    if name and directory.is_dir():
        if revision is not None:
            raise unusable_backbone(
                name, f"it is a directory, which has no revision {revision!r} (--backbone.revision)"
            )
        if any(directory.glob("*.safetensors")):
            return name
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:10]) or "nothing"
        raise unusable_backbone(name, f"the directory holds {found}, and no *.safetensors file")
    source = _HUB_IDS.get(name, name)
    if _HUB_ID.fullmatch(source):
        return source
    raise unusable_backbone(name, "there is no such built-in backbone, directory or hub id")


def _load_model(source: str, revision: str | None) -> tuple[Any, Any]:
    """The model in float32, and what transformers says about its loading."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        source, revision=revision, trust_remote_code=False
    )
    kind, model_class = config.model_type, transformers.AutoModel
    if kind in _PROJECTED:
        projection_dim = config.projection_dim
        config, model_class = config.vision_config, getattr(transformers, _PROJECTED[kind])
        config.projection_dim = projection_dim
    elif kind in _POOLING_HEADS:
        config = config.vision_config
    elif (architecture := (config.architectures or [""])[0]) in _PROJECTED.values():
        model_class = getattr(transformers, architecture)
    model, info = model_class.from_pretrained(
        source,
        config=config,
        revision=revision,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    return model, info


def _network(model: Any, preprocessing: Preprocessing, *, has_trained_pooler: bool) -> nn.Module:
    if isinstance(preprocessing.resize, PatchGrid):
        return _Patches(model, preprocessing.resize, preprocessing)
    return _PooledOutput(model, has_trained_pooler=has_trained_pooler)


class _PooledOutput(nn.Module):
    """(B, 3, H, W) to (B, D), as the table of the module's docstring says.

    Args:
        model: a vision model, or a model of pictures and texts.
        has_trained_pooler: whether the checkpoint holds the pooler's weights.
    """

    def __init__(self, model: Any, *, has_trained_pooler: bool) -> None:
        super().__init__()
        self.model = model
        self.embed = getattr(model, "get_image_features", model)
        self.has_trained_pooler = has_trained_pooler

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        output = self.embed(pixel_values=pixels_BCHW)
        pooled: Tensor | None = getattr(output, "image_embeds", None)
        if pooled is None and self.has_trained_pooler:
            pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state.float()
        return hidden.mean((2, 3) if hidden.ndim == 4 else 1)


class _Patches(nn.Module):
    """Packed patches to (B, D), for a SigLIP 2 NaFlex model.

    The patch that says the grid is always masked. So no batch is without a mask, for which
    transformers would take another kernel: a feature never depends on the other pictures' shapes.

    Args:
        model: the vision half of the model.
        grid: how patches are packed.
        preprocessing: mean and std, which are undone before the grid sizes are read.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: Any, grid: PatchGrid, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.grid = model, grid
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std)
        )
        self.register_buffer("mean_C11", mean, persistent=False)
        self.register_buffer("std_C11", std, persistent=False)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        _, size_B2 = self.grid.unpack(pixels_BCHW * self.std_C11 + self.mean_C11)
        patch_BPX, _ = self.grid.unpack(pixels_BCHW)
        position_P = torch.arange(patch_BPX.shape[1], device=patch_BPX.device)
        mask_BP = position_P < size_B2.prod(dim=1, keepdim=True)
        mask_BP[:, -1] = False
        output = self.model(
            pixel_values=patch_BPX * mask_BP[:, :, None],
            pixel_attention_mask=mask_BP.int(),
            spatial_shapes=size_B2,
        )
        pooled: Tensor = output.pooler_output
        return pooled
