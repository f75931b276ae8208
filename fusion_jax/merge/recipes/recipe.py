"""What a recipe says: frozen records that hold no mistake (merge specification, sections 1.3 to 1.5, 9 and 12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fusion_jax.merge.methods.arithmetic import MathDtype
from fusion_jax.merge.recipes.parameters import Settings


@dataclass(frozen=True)
class Source:
    """A model of a slice: its path, the half-open range of its layers (None: all), its own settings."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Settings = field(default_factory=dict)

    @property
    def start(self) -> int:
        """The first of its layers."""
        return self.layers[0] if self.layers else 0


@dataclass(frozen=True)
class Slice:
    """Layers of the output: the models they are merged from, the base (which is none of them), their settings."""

    sources: tuple[Source, ...]
    base: Source | None = None
    parameters: Settings = field(default_factory=dict)

    @property
    def participants(self) -> tuple[Source, ...]:
        """All its models, the base first: its names and shapes are the output's."""
        return (self.base, *self.sources) if self.base else self.sources


@dataclass(frozen=True)
class TokenRule:
    """Where a token's row comes from in models without it (`force`: in all models): a row of a model, or zeros.

    token: text, or the row's number; both None: a zero row.
    """

    model: str | None = None
    token: str | int | None = None
    force: bool = False


@dataclass(frozen=True)
class VocabularyPolicy:
    """The output's vocabulary (section 9): source "refuse" (sizes must agree), "base", "union" or "model" (`model`)."""

    source: Literal["refuse", "base", "union", "model"] = "refuse"
    model: str | None = None
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What is merged, and how.

    slices: one for `models`, whose sources have all layers (None). base: path of the base model, which gives the
      config and the tokenizer; no slice lists it among its sources, but for methods without a base, of which it is one
      more model. parameters: of the whole merge. out_dtype: of the saved file; None keeps the inputs'.
    chat_template: a Jinja template, "auto" (the one that most inputs have), None (the tokenizer's own).
    revisions: of the models that ask for one; folders are read as they are, whatever revision they hold.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Settings = field(default_factory=dict)
    math_dtype: MathDtype = "float32"
    out_dtype: MathDtype | None = None
    seed: int = 0
    vocabulary: VocabularyPolicy = VocabularyPolicy()
    chat_template: str | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models beside the base, each once, in the order of the recipe."""
        return tuple(dict.fromkeys(s.model for one in self.slices for s in one.sources))

    @property
    def inputs(self) -> tuple[str, ...]:
        """All models that are read: `models`, then the base (or, of slices, the bases)."""
        bases = [one.base.model for one in self.slices if one.base] + ([self.base] if self.base else [])
        return tuple(dict.fromkeys([*self.models, *bases]))
