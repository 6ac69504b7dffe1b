"""A sentence model's features are its own, whatever other texts are embedded with them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.features.sentence_models import DIM, WORDS, bert_model, static_model, word_vectors
from visrec.errors import InputError
from visrec.features.sentences import TextConfig, TextEncoder, load_text_encoder
from visrec.threads import torch_threads

TEXTS = ["red shirt", "blue linen coat", "a coat of wool", "old", "red shirt\na new coat of linen",
         "wool " * 40, "unknown words", "blue wool coat"]  # fmt: skip


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return load_text_encoder(TextConfig(model=static_model(tmp_path_factory.mktemp("s") / "m")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return load_text_encoder(TextConfig(model=bert_model(tmp_path_factory.mktemp("b") / "m")))


def test_static_features_are_the_mean_of_the_words(static: TextEncoder) -> None:
    vectors = word_vectors()
    for text, feature in zip(TEXTS, static(TEXTS), strict=True):
        words = [WORDS.index(w) if w in WORDS else 1 for w in text.split()]
        np.testing.assert_allclose(feature, vectors[words].mean(0), rtol=1e-5, atol=1e-6)


def test_bert_features_equal_those_of_the_library(bert: TextEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(bert.identity.backbone, device="cpu").encode(TEXTS)
    found = bert(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), bert.identity.dim) == (len(TEXTS), DIM)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["static", "bert"])
def test_feature_does_not_depend_on_the_other_texts_or_threads(
    request: pytest.FixtureRequest, kind: str
) -> None:
    encode: TextEncoder = request.getfixturevalue(kind)
    with torch_threads(1):
        everything = encode(TEXTS * 9)
        for rows in ([3], [1, 7], [5, 2, 0, 4]):
            assert np.array_equal(encode([TEXTS[r] for r in rows]), everything[rows])
    assert encode([]).shape == (0, DIM)


def test_identity_tells_weights_tokenizer_and_pooling_apart(
    bert: TextEncoder, tmp_path: Path
) -> None:
    same = load_text_encoder(TextConfig(model=bert_model(tmp_path / "same"))).identity
    cls = load_text_encoder(TextConfig(model=bert_model(tmp_path / "cls", "cls"))).identity
    other = load_text_encoder(TextConfig(model=bert_model(tmp_path / "new", seed=1))).identity
    assert same.weights_digest == bert.identity.weights_digest == cls.weights_digest
    assert same.preprocessing == bert.identity.preprocessing != cls.preprocessing
    assert other.weights_digest != same.weights_digest
    assert same.preprocessing["max_tokens"] == 12
    assert not same.is_imported


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_text_encoder(TextConfig(model=name))
    message = str(caught.value)
    assert repr(name) in message
    assert "--text.model" in message
    assert "\n" not in message
    return message


def test_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin" in refused(str(tmp_path))


def test_unreachable_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "could not be loaded" in refused("nobody/no-such-model-of-visrec")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'visrec\[text\]'"):
        load_text_encoder(TextConfig(model="some/model"))


def test_revision_without_a_hub_id_is_refused(tmp_path: Path) -> None:
    for model in (None, str(tmp_path)):
        with pytest.raises(InputError, match=r"--text\.revision v2"):
            TextConfig(model=model, revision="v2")
    with pytest.raises(InputError, match=r"empty --text\.model"):
        TextConfig(model=" ")
