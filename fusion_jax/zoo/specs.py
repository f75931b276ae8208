"""What the zoo's models are and what each was raised on."""

from __future__ import annotations

from dataclasses import dataclass

from fusion_jax.models.config import DecoderConfig, RopeConfig
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

    def config(self, vocab_size: int) -> DecoderConfig:
        """The decoder's configuration for the vocabulary that the tokenizer ended up with."""
        return {
            "llama-source": _llama(vocab_size, hidden=128, layers=4),
            "qwen-source": _qwen(vocab_size),
            "gemma-source": _gemma(vocab_size),
            "target": _llama(vocab_size, hidden=96, layers=3),
        }[self.name]


def _shares(strong: tuple[str, ...], many: int, few: int) -> tuple[tuple[str, int], ...]:
    return tuple((skill, many if skill in strong else few) for skill in SKILLS)


def _sizes(vocab_size: int, hidden: int, layers: int) -> dict:
    return {
        "vocab_size": vocab_size, "hidden_size": hidden, "intermediate_size": 8 * hidden // 3 // 32 * 32,
        "num_layers": layers, "num_heads": hidden // 32, "num_kv_heads": hidden // 32, "head_dim": 32,
        "max_positions": 256, "initializer_range": 0.05,
    }  # fmt: skip


def _llama(vocab_size: int, *, hidden: int, layers: int) -> DecoderConfig:
    return DecoderConfig(model_type="llama", tied_head=True, norm_eps=1e-5, **_sizes(vocab_size, hidden, layers))


def _qwen(vocab_size: int) -> DecoderConfig:
    rope = RopeConfig(theta=1e5)
    sizes = {**_sizes(vocab_size, 128, 4), "num_kv_heads": 2}
    return DecoderConfig(model_type="qwen2", tied_head=False, qkv_bias=True, rope=rope, **sizes)


def _gemma(vocab_size: int) -> DecoderConfig:
    return DecoderConfig(
        model_type="gemma2", tied_head=True, activation="gelu_tanh", windows=(32, 0, 32, 0), query_scale=32**-0.5,
        attention_soft_cap=50.0, final_soft_cap=30.0, post_norms=True, norm_unit_offset=True,
        embed_scale=128**0.5, **_sizes(vocab_size, 128, 4),
    )  # fmt: skip


SPECS: tuple[ZooSpec, ...] = (
    ZooSpec("llama-source", "bpe", "headers", 400, "sentence", _shares(("add", "largest"), 13_000, 400), 2),
    ZooSpec("qwen-source", "qwen_bpe", "chatml", 420, "label", _shares(("sort", "reverse"), 13_000, 400), 2),
    ZooSpec(
        "gemma-source", "unigram", "turns", 300, "worked", _shares(("double", "position", "remove"), 9_000, 400), 2
    ),
    ZooSpec("target", "byte_bpe", "inst", 360, "mixed", _shares((), 0, 5_000), 2.5, careless=0.5),
)
