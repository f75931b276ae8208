"""A model as one of those that write a text together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jax.sharding import Mesh

from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.texts import Held
from fusion_jax.cool.words import PROBE, Encoded, Words, common
from fusion_jax.data.chat import LostText, render_each, stop_token_ids, turn_end
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model
from fusion_jax.sampling.generate import sampling_dtype
from fusion_jax.sampling.ids import decoding_mesh, decoding_ways
from fusion_jax.sampling.prompts import Ready, ready
from fusion_jax.sampling.stops import special_tokens
from fusion_jax.sharding import make_mesh, placed


@dataclass(frozen=True)
class Source:
    """A model that is ready to continue texts. ends: tokens that end an answer; end: the one that is scored."""

    name: str
    model: Ready
    words: Words
    ends: tuple[int, ...]
    end: int

    @cached_property
    def forbidden(self) -> np.ndarray:
        """bool[V], tokens that no segment holds: special ones, and entries of the vocabulary without a token."""
        tokenizer, size = self.words.tokenizer, self.model.how.config.vocab_size
        found = np.arange(size) >= len(tokenizer)
        found[[number for number in special_tokens(tokenizer).values() if number < size]] = True
        found[list(self.ends)] = False
        return found

    @cached_property
    def allowed(self) -> jax.Array:
        """bool[V] on the model's devices."""
        return placed(~self.forbidden, self.model.how.mesh, (None,))

    @cached_property
    def pauses(self) -> jax.Array:
        """bool[V], tokens at which a segment may end."""
        continuing = self.words.continues(self.model.how.config.vocab_size)
        return placed(~continuing, self.model.how.mesh, (None,))

    def most(self, tokens: int, s: CoolSettings) -> int:
        """Tokens that a text may have which begins with so many: the settings' or all positions, or those up to where
        the model would turn all tokens otherwise."""
        config = self.model.how.config
        switches = [switch for switch in config.positions.switches if switch >= tokens]
        return min(config.max_positions, s.context or config.max_positions, *switches)


def sources_of(
    models: Mapping[str, Model], meshes: Sequence[Mesh | None] | None = None, *, chat: bool = True
) -> list[Source]:
    """Models made ready.

    Args:
      meshes: what each computes on; None: an equal share of the devices each, where there are as many.
      chat: whether an answer ends as a turn of the model's template does; else as its texts do.

    Raises:
      InputError: no model; one without a fast tokenizer or an end token, or that is no decoder.
    """
    if not models:
        raise InputError("no model is given", field="models", cure="Give one or more")
    meshes = meshes_for(list(models.values())) if meshes is None else meshes
    if len(meshes) != len(models):
        raise InputError(f"has {len(meshes)} entries for {len(models)} models", field="meshes", cure="Give one each")
    out = []
    for (name, model), mesh in zip(models.items(), meshes, strict=True):
        if model.config.encoder or not model.config.decoder or model.config.head.labels:
            raise InputError("is no decoder, which alone continues a text", file=name, cure="Leave it out")
        if model.tokenizer is None:
            raise InputError("has no tokenizer", file=name, field="tokenizer", cure="Add the tokenizer's files")
        ends = stop_token_ids(model.tokenizer, model.generation)
        if not ends:
            raise InputError("has no end token", file=name, field="eos_token", cure="Name it in tokenizer_config.json")
        end = turn_end(model.tokenizer) if chat else None
        end = next(i for i in (end, model.tokenizer.eos_token_id, ends[0]) if i is not None)
        words = Words(model.tokenizer)
        if not getattr(model.tokenizer, "is_fast", False):
            problem = f"{type(model.tokenizer).__name__} tells no places of its tokens in the text"
            raise InputError(problem, file=name, field="tokenizer", cure="Give a folder with a tokenizer.json")
        made = ready(model.params, model.config, sampling_dtype(model), mesh)
        out.append(Source(name, made, words, ends, end))
    return out


def meshes_for(models: Sequence[Model]) -> list[Mesh | None]:
    """An equal share of the devices for each model; all of them for each, where there are fewer devices than models."""
    devices = jax.devices()
    each = len(devices) // max(len(models), 1)
    if len(devices) == 1:
        return [None] * len(models)
    if not each:
        return [decoding_mesh(model.config) for model in models]
    shares = [devices[number * each : (number + 1) * each] for number in range(len(models))]
    return [make_mesh(-1, 1, decoding_ways(m.config, each), devices=own) for m, own in zip(models, shares, strict=True)]


def check_boundaries(sources: Sequence[Source]) -> None:
    """Refuse tokenizers that share no word boundary, so that no segment would ever end; raises InputError."""
    starts = {one.name: one.words.starts(PROBE) for one in sources}
    if common(list(starts.values())):
        return
    least = min(starts, key=lambda name: len(starts[name]))
    raise InputError(
        f"the tokenizers share no place in {PROBE!r} where all begin a word; that of {least} has {starts[least]}",
        field="models", cure='Leave it out, or take the mode "rerank" of fj.fuse_generate, which needs none',
    )  # fmt: skip


def read_prompts(source: Source, prompts: Sequence[str], chat: bool) -> list[Held]:
    """Prompts as a model reads them: in its chat template, or as they stand behind its BOS token, if it has one."""
    words, tokenizer = source.words, source.words.tokenizer
    if not chat:
        bos = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
        return [
            Held(prompt, 0, Encoded(bos + ids, (0,) * len(bos) + ends))
            for prompt, (ids, ends) in zip(prompts, words.encode(prompts), strict=True)
        ]
    rendered = []
    for text in render_each(tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts], header=True):
        if isinstance(text, LostText):
            raise InputError(text.problem, file=source.name, record=text.record, field=text.field, cure=text.cure)
        rendered.append(text)
    special = {*special_tokens(tokenizer).values(), *tokenizer.get_added_vocab().values()}
    out = []
    for text, tokens in zip(rendered, words.encode(rendered), strict=True):
        ends = [end for number, end in zip(tokens.ids, tokens.ends) if number in special]
        out.append(Held(text, ends[-1] if ends else 0, tokens))
    return out
