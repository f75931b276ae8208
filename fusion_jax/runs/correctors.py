"""How a model reads and writes corrections, as an encoder-decoder or as a decoder alone: examples in, texts out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.correction.inputs import Lengths, Mode, encode_items, encode_sources, framed, marks_of, parts, token_ids
from fusion_jax.correction.outputs import GuardSettings, chat_corrections, corrections
from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.correction.prompts import encode_prompts, encode_texts
from fusion_jax.data.batches import Example
from fusion_jax.data.chat import stop_token_ids
from fusion_jax.errors import InputError, quoted
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import Model
from fusion_jax.sampling.beam_search import BeamSearch
from fusion_jax.sampling.copying import write_copying
from fusion_jax.sampling.generate import sampling_dtype
from fusion_jax.sampling.ids import Completion, decoding_mesh, generate_ids
from fusion_jax.sampling.samplers import GREEDY
from fusion_jax.settings import bounded
from fusion_jax.train.alirector import TEACHERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODES: Mapping[str, Mode] = {"source_first": "align_forward", "draft_first": "align_reverse"}
"""What each alignment model reads."""
CONTROLS: Mapping[str, Mode] = {"source_first": "source_source", "draft_first": "pred_pred"}
"""What alignment models read that see one of the two texts twice."""


@dataclass(frozen=True)
class WritingSettings:
    """How corrections are decoded."""

    beams: int = 10
    """Hypotheses of the beam search; 1: greedy."""
    length_penalty: float = 1.0
    """Power of its length that a hypothesis's log-probability is divided by."""
    no_repeat_ngram: int = 0
    """Length of the n-grams of which a correction writes none twice; 0: no limit, as repetitions may be right."""
    max_new_tokens: int = 128
    """Tokens of a correction, its end included."""
    batch_size: int = 64
    """Sentences at once, over all devices."""

    def __post_init__(self) -> None:
        bounded(self, "beams", "max_new_tokens", "batch_size", least=1)
        bounded(self, "no_repeat_ngram", least=0)
        _ = self.search  # has the ranges of the rest

    @property
    def search(self) -> BeamSearch | None:
        """The beam search, if there is one."""
        return BeamSearch(self.beams, self.length_penalty, False, self.no_repeat_ngram) if self.beams > 1 else None


class Written(NamedTuple):
    """Corrections of some sentences: texts, whether each came to its end, and how often which guard acted."""

    texts: list[str]
    ended: list[bool]
    counts: Counter[str]


@dataclass(frozen=True)
class Corrector:
    """What is the same of all models of a run: architecture, tokenizer, and how they read and write.

    cutoff: tokens of a decoder's prompt with its correction.
    """

    config: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    lengths: Lengths
    cutoff: int
    guards: GuardSettings
    writing: WritingSettings
    modes: Mapping[str, Mode] = dataclasses.field(default_factory=lambda: MODES)

    def examples(
        self, items: Sequence[Pair | Triple], mode: Mode = "correct", *, taught: bool = False
    ) -> tuple[list[Example], Counter[str]]:
        """The records as a model learns them in a mode, and counts of what was cut or left out.

        taught: with what both alignment models read of them beside.
        """
        modes: list[Mode] = [mode, *((self.modes[name] for name in TEACHERS) if taught else ())]
        if self.config.encoder:
            encoded, counts = encode_items(items, self.tokenizer, modes, self.lengths)
            rows = [one.example(self.config.start) for one in encoded]
            beside = [dict(zip(TEACHERS, map(np.asarray, one.inputs[1:]))) for one in encoded]
        else:
            prompted, counts = encode_texts(items, self.tokenizer, modes, self.cutoff)
            rows = [one.example() for one in prompted]
            beside = [
                dict(zip(TEACHERS, map(np.asarray, one.rows[1:])))
                | {f"{name}_start": np.asarray([start]) for name, start in zip(TEACHERS, one.starts[1:])}
                for one in prompted
            ]
        if not taught:
            return rows, counts
        return [dataclasses.replace(row, beside=more) for row, more in zip(rows, beside, strict=True)], counts

    def written(self, model: Model, items: Sequence[Pair | Triple], mode: Mode = "correct") -> Written:
        """What a model makes of the sources, or of sources and drafts, in their order."""
        sources, prompts = [item.source for item in items], self._prompts(items, mode)
        found = self._completions(model, prompts)
        ids, ended = [one.ids for one in found], [one.finished for one in found]
        if self.config.encoder:
            corrected = corrections(sources, ids, self.tokenizer, self.guards)
        else:
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            corrected = chat_corrections(sources, texts, self.guards)
        return Written(corrected.texts, ended, corrected.counts)

    def _prompts(self, items: Sequence[Pair | Triple], mode: Mode) -> list[tuple[int, ...]]:
        if not self.config.encoder:
            return encode_prompts(items, self.tokenizer, mode)
        if mode == "correct":
            return encode_sources(self.tokenizer, [item.source for item in items])
        marks, shown = marks_of(self.tokenizer), [parts(item, mode) for item in items]
        known = dict.fromkeys(text for texts in shown for text in texts)
        ids = dict(zip(known, token_ids(self.tokenizer, list(known)), strict=True))
        return [framed([ids[text] for text in texts], marks, self.lengths.pair)[0] for texts in shown]

    def check_readable(self, sources: Sequence[str], file: str) -> None:
        """Refuse, before the first stage, a sentence that the model cannot read whole."""
        (around,) = self._prompts([Pair("", "")], "correct")
        # Few are so long that they have to be tokenised: a token is a byte of the sentence at least.
        some = [one for one in sources if len(around) + len(one.encode("utf-8", "surrogatepass")) > self._room]
        prompts = self._prompts([Pair(source, source) for source in some], "correct")
        if some:
            source, prompt = max(zip(some, prompts, strict=True), key=lambda both: len(both[1]))
            self._check_room(prompt, file=file, record=quoted(source))

    def _check_room(self, prompt: Sequence[int], *, record: str | int, file: str | None = None) -> None:
        if len(prompt) > self._room:
            problem = f"has {len(prompt)} tokens, the model reads {self._room} besides what it writes"
            cure = "Shorten the sentence, or lower --writing.max-new-tokens"
            raise InputError(problem, file=file, record=record, field="source", cure=cure)

    @property
    def _room(self) -> int:
        """Tokens of the longest text that can be answered."""
        longest = self.config.max_positions
        return longest if self.config.encoder else longest - self.writing.max_new_tokens

    def _completions(self, model: Model, prompts: Sequence[tuple[int, ...]]) -> list[Completion]:
        how, config = self.writing, model.config
        for number, prompt in enumerate(prompts, 1):
            self._check_room(prompt, record=number)
        if config.head.copying:
            return write_copying(
                model.params, config, prompts, max_new_tokens=min(how.max_new_tokens, config.max_positions - 1),
                stop=marks_of(self.tokenizer).sep, batch_size=how.batch_size, mesh=decoding_mesh(config),
                dtype=sampling_dtype(model),
            )  # fmt: skip
        return [
            one
            for (one,) in generate_ids(
                model.params, config, prompts, max_new_tokens=min(how.max_new_tokens, config.max_positions - 1),
                sampler=GREEDY, stop_ids=self._stops(model), search=how.search, batch_size=how.batch_size,
                mesh=decoding_mesh(config), dtype=sampling_dtype(model),
            )
        ]  # fmt: skip

    def _stops(self, model: Model) -> Sequence[int]:
        if self.config.encoder:
            return [marks_of(self.tokenizer).sep]
        return stop_token_ids(self.tokenizer, model.generation)
