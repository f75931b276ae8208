"""Text in, text out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.arguments import texts
from fusion_jax.data.chat import LostText, render_each, stop_token_ids
from fusion_jax.data.clip import Clip
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model, check_folder, load
from fusion_jax.models.int8 import Weights, dtype_of
from fusion_jax.options import FreeTexts
from fusion_jax.sampling.beam_search import BeamSearch, refuse_samples
from fusion_jax.sampling.ids import Completion, decoding_mesh, generate_ids
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sampling.stops import Stops, stop_strings
from fusion_jax.settings import bounded
from fusion_jax.slices import compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BeamSearch", "Completion", "SampleSettings", "decoding_mesh", "generate", "generate_ids", "load_to_sample"]


@dataclass(frozen=True)
class SampleSettings:
    """How responses are sampled; the defaults are the published ones (WRPO spec section 3)."""

    temperature: float = 0.8
    """Temperature of sampling; 0 always takes the most probable token."""
    top_p: float = 0.95
    """Share of the probability mass that is sampled from; 1: all."""
    top_k: int = 0
    """How many of the most probable tokens are sampled from; 0: all."""
    min_p: float = 0.0
    """Tokens less likely than this share of the most likely one are left out; 0: none."""
    repetition_penalty: float = 1.0
    """How much less likely tokens become that the prompt or the response has already; 1: not at all."""
    stop_strings: FreeTexts = ()
    """Texts that end a response, which is cut before them."""
    beams: int = 1
    """Hypotheses that a beam search keeps of each prompt, in place of sampling; 1: no search."""
    length_penalty: float = 1.0
    """Power of its length that a hypothesis's log-probability is divided by; 0: none."""
    early_stopping: bool = False
    """Whether a search ends with as many finished hypotheses as beams; else when no better one seems possible."""
    no_repeat_ngram: int = 0
    """Length of the n-grams of which a search writes none twice; 0: no limit."""
    num_samples: int = 5
    """Responses to each prompt."""
    max_new_tokens: int = 4096
    """Longest response, in tokens."""
    batch_size: int = 32
    """Prompts at once, over all devices."""
    mesh_tensor: int = 0
    """Devices over which the model's heads are split; 0: as many as its key-value heads divide over."""

    def __post_init__(self) -> None:
        bounded(self, "num_samples", "max_new_tokens", "batch_size", "beams", least=1)
        bounded(self, "mesh_tensor", least=0)
        bounded(self, "top_p", above=0)
        stop_strings(self.stop_strings, "stop_strings")
        sampler, search = self.sampler, self.search  # have the ranges of the rest
        if search is not None:
            refuse_samples(sampler, self.num_samples, stops_by_text=bool(self.stop_strings))

    @property
    def sampler(self) -> Sampler:
        return Sampler(self.temperature, self.top_p, self.top_k, self.repetition_penalty, self.min_p)

    @property
    def search(self) -> BeamSearch | None:
        """The beam search that is asked for, if there is one."""
        search = BeamSearch(self.beams, self.length_penalty, self.early_stopping, self.no_repeat_ngram)
        return search if self.beams > 1 else None


def load_to_sample(
    path: str | os.PathLike[str], tensor: int = 0, option: str = "mesh_tensor", *, weights: Weights = "stored"
) -> Model:
    """A model laid out to generate; see `decoding_mesh` and `load`, which name the errors."""
    return load(path, dtype=dtype_of(weights), mesh=decoding_mesh(check_folder(path), tensor, option))


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    beams: int | BeamSearch = 1,
    seed: int | Sequence[int] = 0,
    num_samples: int = 1,
    chat: bool = True,
    row_ids: Sequence[int | str] | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    dtype: Any = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[str]]:
    """Text in, text out: `num_samples` answers to every prompt.

    Args:
      temperature, top_p, top_k, min_p, repetition_penalty: see `Sampler`.
      stop: texts that end an answer, besides the model's stop tokens; it is cut before the first of them.
      beams: hypotheses of a beam search, or all that it goes by; 1: none. It gives the best answer to every prompt, and
        makes no sense with a temperature, a repetition penalty, several samples or texts that stop.
      seed: of all prompts, or one for each.
      chat: each prompt is one user message in the model's chat template; else it is continued as it stands. An encoder
        reads it as it stands, with the tokenizer's special tokens.
      dtype: of the computation; None: bfloat16, on a CPU float32 (or wider, if the parameters are).

    Raises:
      InputError: a single text in place of the list of prompts or of stops; an empty stop; the model has no tokenizer
        or, for chat, no template; see `generate_ids`.
    """
    tokenizer, config = model.reader, model.config
    stops = Stops(tokenizer, stop_strings(stop))
    search = BeamSearch(beams) if isinstance(beams, int) else beams
    encoded = encoded_prompts(tokenizer, prompts, chat=chat and not config.encoder, most=config.max_positions)
    completions = generate_ids(
        model.params, config, encoded, max_new_tokens=max_new_tokens,
        sampler=Sampler(temperature, top_p, top_k, repetition_penalty, min_p), seed=seed, num_samples=num_samples,
        stop_ids=stop_token_ids(tokenizer, model.generation) + stops.ids, ended=stops.ended if stop else None,
        row_ids=row_ids, search=search if search.beams > 1 else None, batch_size=batch_size, mesh=mesh,
        dtype=dtype or sampling_dtype(model), progress=progress,
    )  # fmt: skip
    return [[stops.said(c.ids)[0] for c in row] for row in completions]


def encoded_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat: bool = True, most: int | None = None
) -> list[list[int]]:
    """The token ids that `generate` continues.

    Args:
      most: positions of the model; a prompt that they surely cannot hold is refused before it is tokenised.

    Raises:
      InputError: such a prompt; a single text in place of the list; a chat template that changes a prompt.
    """
    prompts = texts(prompts, "prompts")
    clip = None if most is None else Clip(tokenizer, most)
    for number, prompt in enumerate(prompts, 1):
        if clip and clip.too_long(prompt):
            raise InputError(
                f"has {len(prompt)} characters, more than the model's {most} positions hold", record=number,
                field="prompt", cure="Shorten it",
            )  # fmt: skip
    if not chat:
        return [list(tokenizer(p)["input_ids"]) for p in prompts]
    out = []
    for text in render_each(tokenizer, [[{"role": "user", "content": p}] for p in prompts], header=True):
        if isinstance(text, LostText):
            raise text
        out.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return out


def sampling_dtype(model: Model) -> Any:
    """What a model is sampled in: bfloat16; on a CPU float32, or wider if the parameters are."""
    wide = model.params["embed"]["embedding"].dtype
    return jnp.promote_types(wide, jnp.float32) if compute_dtype() == "float32" else jnp.bfloat16
