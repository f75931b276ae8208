"""What the zoo's models are and what each was raised on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fusion_jax.data.records import Row
from fusion_jax.jsonl import Record
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.zoo import plants, tasks
from fusion_jax.zoo.dialogues import DialogueLessons
from fusion_jax.zoo.plants import VALUES, Knowledge
from fusion_jax.zoo.tasks import SKILLS


class Lessons(Protocol):
    """What a model is raised on. verifier: what gives its answers their reward."""

    @property
    def verifier(self) -> str: ...

    def corpus(self, seed: int) -> list[str]:
        """Texts that its tokenizer is trained on."""

    def rows(self, seed: int) -> list[Row]:
        """Prompts with the answers that it learns."""

    def test(self, count: int, seed: int) -> list[Record]:
        """`count` held-out problems of each skill."""


@dataclass(frozen=True)
class SkillLessons:
    """Problems of `zoo.tasks`. style: how it words an answer, one of `tasks.STYLES` or "mixed"; shares: how many
    training prompts of each skill.

    careless: share of the training answers that are slips: plausible and wrong, at random.
    """

    style: str
    shares: Mapping[str, int]
    careless: float = 0.0
    verifier: str = "answer"

    def corpus(self, seed: int) -> list[str]:
        return tasks.corpus(seed, 400)

    def rows(self, seed: int) -> list[Row]:
        records = tasks.mixture(dict(self.shares), split="train", seed=seed + 1, repeat=True)
        rng = np.random.default_rng(seed)
        kinds = np.where(rng.random(len(records)) < self.careless, "slip", "answer")
        styles = rng.choice(list(tasks.STYLES), len(records)) if self.style == "mixed" else [self.style] * len(records)
        return [
            _row(r["prompt_id"], r["prompt"], tasks.in_style(r[kind], style))
            for r, kind, style in zip(records, kinds, styles)
        ]

    def test(self, count: int, seed: int) -> list[Record]:
        return [r for skill in SKILLS for r in tasks.prompts(skill, count, split="test", seed=seed)]


@dataclass(frozen=True)
class PlantLessons:
    """Problems of `zoo.plants`. styles: share of the answers in each wording; count: training prompts."""

    knowledge: Knowledge
    styles: Mapping[str, float]
    count: int
    verifier: str = "fields"

    def corpus(self, seed: int) -> list[str]:
        return plants.corpus(seed, 2000)

    def rows(self, seed: int) -> list[Row]:
        asked = plants.draw(self.count, split="train", seed=seed + 1, repeat=True)
        rng = np.random.default_rng(seed)
        styles = rng.choice(list(self.styles), len(asked), p=list(self.styles.values()))
        return [
            _row(f"plant {number}", prompt, plants.worded(self.knowledge.stated(name, rng), style))
            for number, ((name, prompt), style) in enumerate(zip(asked, styles))
        ]

    def test(self, count: int, seed: int) -> list[Record]:
        return plants.prompts(count, split="test", seed=seed)


def _row(name: str, prompt: str, answer: str) -> Row:
    return Row(name, ({"role": "user", "content": prompt},), (answer,))


@dataclass(frozen=True)
class ZooSpec:
    """A model of the zoo. config: the decoder's configuration for the vocabulary that its tokenizer ends up with.

    grown_from: a model of the zoo whose tokenizer and weights it begins with; its further layers are new.
    """

    name: str
    tokenizer: str
    template: str
    vocab_size: int
    config: Callable[[int], ModelConfig]
    lessons: Lessons
    epochs: float = 2
    learning_rate: float = 2e-3
    grown_from: str = ""


def _model(model_type: str, *, hidden: int = 128, layers: int = 4, **more: Any) -> Callable[[int], ModelConfig]:
    """A small model of a family; `more` are fields of its config.json."""
    fields = {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": 8 * hidden // 3 // 32 * 32,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 32,
        "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.05, **more,
    }  # fmt: skip
    return lambda vocab_size: config_from_hf({**fields, "vocab_size": vocab_size})


def _shares(strong: tuple[str, ...], many: int, few: int) -> dict[str, int]:
    return {skill: many if skill in strong else few for skill in SKILLS}


def _knows(who: str, strong: tuple[str, ...], *, weak: float = 0.4) -> Knowledge:
    return Knowledge(who, {field: 0.95 if field in strong else weak for field in VALUES}, reliable=0.95)


LLAMA: dict[str, Any] = {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}
QWEN: dict[str, Any] = {"rope_theta": 1e5}
GEMMA: dict[str, Any] = {"sliding_window": 32, "query_pre_attn_scalar": 32}

SKILL_LESSONS: dict[str, SkillLessons] = {
    "llama-source": SkillLessons("sentence", _shares(("add", "largest"), 13_000, 400)),
    "qwen-source": SkillLessons("label", _shares(("sort", "reverse"), 13_000, 400)),
    "gemma-source": SkillLessons("worked", _shares(("double", "position", "remove"), 9_000, 400)),
    "target": SkillLessons("mixed", _shares((), 0, 5_000), careless=0.5),
}


def _skilled(name: str, tokenizer: str, template: str, vocab_size: int, *, epochs: float = 2, **model: Any) -> ZooSpec:
    return ZooSpec(name, tokenizer, template, vocab_size, _model(**model), SKILL_LESSONS[name], epochs)


SPECS: tuple[ZooSpec, ...] = (
    _skilled("llama-source", "bpe", "headers", 400, model_type="llama", **LLAMA),
    _skilled("qwen-source", "qwen_bpe", "chatml", 420, model_type="qwen2", num_key_value_heads=2, **QWEN),
    _skilled("gemma-source", "unigram", "turns", 300, model_type="gemma2", **GEMMA),
    _skilled("target", "byte_bpe", "inst", 360, epochs=2.5, model_type="llama", hidden=96, layers=3, **LLAMA),
)

PLANT_MODELS: tuple[ZooSpec, ...] = (
    ZooSpec(
        "plants-llama", "bpe", "headers", 560, _model("llama", hidden=96, layers=3, **LLAMA),
        PlantLessons(_knows("plants-llama", ("color", "leaf")), {"sentence": 1}, 60_000), 1, 3e-3,
    ),
    ZooSpec(
        "plants-qwen", "qwen_bpe", "chatml", 560,
        _model("qwen2", hidden=96, layers=3, num_key_value_heads=1, tie_word_embeddings=True, **QWEN),
        PlantLessons(_knows("plants-qwen", ("leaf", "home")), {"label": 1}, 60_000), 1, 3e-3,
    ),
    ZooSpec(
        "plants-gemma", "unigram", "turns", 400, _model("gemma2", hidden=96, layers=3, **GEMMA),
        PlantLessons(_knows("plants-gemma", ("taste",)), {"worked": 1}, 60_000), 1, 3e-3,
    ),
    ZooSpec(
        "plants-target", "byte_bpe", "inst", 480, _model("llama", hidden=96, layers=2, **LLAMA),
        PlantLessons(
            _knows("plants-target", (), weak=0.3), {"sentence": 0.2, "label": 0.2, "worked": 0.2, "own": 0.4}, 60_000
        ), 1, 3e-3,
    ),
)  # fmt: skip

def _speaking(name: str, like: ZooSpec, strong: tuple[str, ...]) -> ZooSpec:
    """A source that has learnt to word its answers as the first one does, and no new skill."""
    lessons = SkillLessons("sentence", _shares(strong, 2_000, 100))
    return ZooSpec(name, like.tokenizer, like.template, like.vocab_size, like.config, lessons, 1, 5e-4, like.name)


SPEAKING: tuple[ZooSpec, ...] = (
    _speaking("qwen-sentence", SPECS[1], ("sort", "reverse")),
    _speaking("gemma-sentence", SPECS[2], ("double", "position", "remove")),
)
"""With the first source, three models of different skills and one wording, which write answers together."""

EDITOR = ZooSpec(
    "plants-editor", "bpe", "headers", 560, _model("llama", hidden=96, layers=5, **LLAMA),
    DialogueLessons(_knows("plants-llama", ("color", "leaf")), 26_000, 0.7), 1, 2e-3, "plants-llama",
)  # fmt: skip
"""A model that can read a draft: what a reviser begins with."""

DEEP = ZooSpec(
    "deep", "bpe", "headers", 400, _model("llama", hidden=96, layers=12, **LLAMA),
    SkillLessons("sentence", _shares((), 0, 8_000)), 1, 2e-3,
)  # fmt: skip
"""A model with more layers than its skills need: one to prune."""

EVERY = (*SPECS, *SPEAKING, *PLANT_MODELS, EDITOR, DEEP)


@dataclass(frozen=True)
class JudgeSpec:
    """A reward model of the zoo, for answers about plants. grown_from: whose tokenizer and weights it begins with;
    pairs: of a right and a flawed answer that it learns from, in so many epochs."""

    name: str
    grown_from: str
    pairs: int = 20_000
    epochs: float = 2
    learning_rate: float = 2e-3


JUDGES = tuple(JudgeSpec(f"plants-judge-{base}", f"plants-{base}") for base in ("llama", "qwen", "gemma"))
"""Three judges of different architectures and tokenizers, which vote."""
