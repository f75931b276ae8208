"""What the zoo's models are and what each was raised on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.zoo.tasks import SKILLS


@dataclass(frozen=True)
class ZooSpec:
    """A model of the zoo. shares: how many training prompts of each skill; style: how it words an answer, one of
    `STYLES` or "mixed".

    careless: share of the training answers that are slips: plausible and wrong, at random.
    """

    name: str
    tokenizer: str
    template: str
    vocab_size: int
    style: str
    shares: tuple[tuple[str, int], ...]
    epochs: float
    learning_rate: float = 2e-3
    careless: float = 0.0

    def config(self, vocab_size: int) -> ModelConfig:
        """The decoder's configuration for the vocabulary that the tokenizer ended up with."""
        return {
            "llama-source": _llama(vocab_size, hidden=128, layers=4),
            "qwen-source": _qwen(vocab_size),
            "gemma-source": _gemma(vocab_size),
            "target": _llama(vocab_size, hidden=96, layers=3),
        }[self.name]


def _shares(strong: tuple[str, ...], many: int, few: int) -> tuple[tuple[str, int], ...]:
    return tuple((skill, many if skill in strong else few) for skill in SKILLS)


def _model(model_type: str, vocab_size: int, *, hidden: int = 128, layers: int = 4, **more: Any) -> ModelConfig:
    """A small model of a family; `more` are fields of its config.json."""
    return config_from_hf({
        "model_type": model_type, "vocab_size": vocab_size, "hidden_size": hidden,
        "intermediate_size": 8 * hidden // 3 // 32 * 32, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 32, "head_dim": 32,
        "max_position_embeddings": 256, "initializer_range": 0.05, **more,
    })  # fmt: skip


def _llama(vocab_size: int, *, hidden: int, layers: int) -> ModelConfig:
    more = {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}
    return _model("llama", vocab_size, hidden=hidden, layers=layers, **more)


def _qwen(vocab_size: int) -> ModelConfig:
    return _model("qwen2", vocab_size, num_key_value_heads=2, rope_theta=1e5)


def _gemma(vocab_size: int) -> ModelConfig:
    return _model("gemma2", vocab_size, sliding_window=32, query_pre_attn_scalar=32)


SPECS: tuple[ZooSpec, ...] = (
    ZooSpec("llama-source", "bpe", "headers", 400, "sentence", _shares(("add", "largest"), 13_000, 400), 2),
    ZooSpec("qwen-source", "qwen_bpe", "chatml", 420, "label", _shares(("sort", "reverse"), 13_000, 400), 2),
    ZooSpec(
        "gemma-source", "unigram", "turns", 300, "worked", _shares(("double", "position", "remove"), 9_000, 400), 2
    ),
    ZooSpec("target", "byte_bpe", "inst", 360, "mixed", _shares((), 0, 5_000), 2.5, careless=0.5),
)
