"""Sentence models that turn the texts of items into features.

    encode = load_text_encoder(TextConfig(model="sentence-transformers/all-MiniLM-L6-v2"))
    feature_BD = encode(["Blue linen shirt\\nRelaxed fit, made in Portugal"])

The feature of a text does not depend on the other texts that are embedded with it: texts of one
number of tokens are embedded together, always as many at a time, on one thread, because kernels are
picked by shape (see `visrec.features.backbones.Backbone.batch`).

The models are those of the package sentence-transformers, which is optional and has types of its
own, hence `Any`.

Shapes: B texts, D features.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from visrec.errors import InputError
from visrec.features.backbones.network import digest_weights, first_line, quiet_transformers
from visrec.features.table import Identity

# Texts per call of the model; a smaller batch is padded. Long texts rarely share their number of
# tokens, so a large batch would mostly be padding.
_BATCH = 4
# Raised whenever another text is made of title and description, or embedded in another way:
# features of another recipe are not reused.
_RECIPE = 1


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The model that embeds titles and descriptions.

    Attributes:
        model: directory or hub id of a sentence-transformers model with safetensors weights, such
            as sentence-transformers/all-MiniLM-L6-v2 (pip install 'visrec[text]'). Without one, no
            text is embedded.
        revision: branch, tag or commit of a hub id; by default its main branch.
    """

    model: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.strip():
            raise InputError(
                "Found an empty --text.model; expected the directory or hub id of a "
                "sentence-transformers model. Leave it out to embed no text."
            )
        is_directory = self.model is not None and Path(self.model).is_dir()
        if self.revision is not None and (self.model is None or is_directory):
            raise InputError(
                f"Found --text.revision {self.revision} "
                f"{'for a directory' if is_directory else 'without --text.model'}; expected it "
                "with a hub id. Leave it out."
            )


@dataclass(frozen=True)
class TextEncoder:
    """A loaded sentence model.

    Attributes:
        identity: what makes its features comparable.
        model: a `SentenceTransformer`.
    """

    identity: Identity
    model: Any

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(B, D) features of B texts."""
        feature_BD = np.empty((len(texts), self.identity.dim), np.float32)
        count_B = np.array([_count_tokens(self.model, text) for text in texts], np.int64)
        for count in np.unique(count_B):
            rows = np.flatnonzero(count_B == count)
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                feature_BD[batch] = self._embed([texts[row] for row in batch])
        return feature_BD

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(B, D) features of at most `_BATCH` texts with one number of tokens."""
        padded = [*texts, *[texts[0]] * (_BATCH - len(texts))]
        feature_BD = self.model.encode(padded, batch_size=_BATCH, show_progress_bar=False)
        return np.asarray(feature_BD[: len(texts)], np.float32)


def _count_tokens(model: Any, text: str) -> int:
    return int(model.preprocess([text])["input_ids"].numel())


def load_text_encoder(config: TextConfig, device: str = "cpu") -> TextEncoder:
    """Loads a sentence model.

    Args:
        config: which model.
        device: a torch device.

    Raises:
        InputError: sentence-transformers is not installed, or the model cannot be used.
    """
    name = str(config.model)
    model_class = _sentence_transformer()
    _require_safetensors(name)
    try:
        with quiet_transformers():
            model = model_class(
                name,
                device=device,
                revision=config.revision,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            ).eval()
            feature_D = model.encode(["a text"], show_progress_bar=False)[0]
            preprocessing = _preprocessing(model)
    except Exception as error:  # the library raises many types for a missing model
        raise _unusable(name, f"it could not be loaded ({first_line(error)})") from error
    identity = Identity(
        backbone=name if config.revision is None else f"{name}@{config.revision}",
        weights_digest=digest_weights(model.state_dict()),
        preprocessing=preprocessing,
        precision="float32",
        dim=len(feature_D),
    )
    return TextEncoder(identity, model)


def _sentence_transformer() -> Any:
    """The class `SentenceTransformer`.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            f"Found --text.model and no package sentence-transformers ({first_line(error)}); "
            "expected it: pip install 'visrec[text]'. Or leave --text.model out."
        ) from error
    return SentenceTransformer


def _require_safetensors(name: str) -> None:
    directory = Path(name)
    if not directory.is_dir():
        return
    if not any(directory.rglob("*.safetensors")):
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:10]) or "nothing"
        raise _unusable(name, f"the directory holds {found}, and no *.safetensors file")


def _preprocessing(model: Any) -> Mapping[str, object]:
    """What happens to a text before and after the weights."""
    limit, tokenizer = model.max_seq_length, model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    prompts = model.prompts or {}
    return {
        "text": "title, description",
        "max_tokens": int(limit) if limit is not None and np.isfinite(limit) else None,
        "prompt": prompts.get(model.default_prompt_name),
        "tokenizer": _digest_tokenizer(backend.to_str()),
        "modules": [_describe_module(module) for module in model],
        "recipe": _RECIPE,
    }


def _digest_tokenizer(text: str) -> str:
    """16 hexadecimal digits of a tokenizer, without what each call sets anew."""
    fields = {k: v for k, v in json.loads(text).items() if k not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _describe_module(module: Any) -> str:
    """A module's class, and of a pooling module how it pools."""
    return " ".join([type(module).__name__, str(getattr(module, "pooling_mode", ""))]).strip()


def _unusable(name: str, reason: str) -> InputError:
    return InputError(
        f"The text model {name!r} cannot be used: {reason}. Expected a directory or hub id of a "
        "sentence-transformers model with safetensors weights (pickled .bin weights are not "
        "read). Change --text.model or --text.revision."
    )
