"""Tiny random sentence models, saved as sentence-transformers saves them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "red", "blue", "linen", "wool", "shirt", "coat", "old", "new", "of", "a")
DIM = 24


def tokenizer() -> Tokenizer:
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return words


def static_model(folder: Path, seed: int = 0) -> str:
    """The mean of a vector of each word; whoever knows the vectors knows every feature."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    model = StaticEmbedding(tokenizer(), embedding_weights=word_vectors(seed).numpy())
    SentenceTransformer(modules=[model], device="cpu").save(str(folder))
    return str(folder)


def word_vectors(seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(len(WORDS), DIM, generator=random)


def bert_model(folder: Path, pooling: str = "mean", seed: int = 0) -> str:
    """Two layers of attention over at most 12 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": DIM, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BertConfig(
        vocab_size=len(WORDS), num_attention_heads=4, max_position_embeddings=12, **sizes
    )
    encoder = folder.with_name(f"{folder.name}-encoder")
    BertModel(config).save_pretrained(encoder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]", model_max_length=12
    ).save_pretrained(encoder)
    modules = [Transformer(str(encoder)), Pooling(DIM, pooling)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return str(folder)
