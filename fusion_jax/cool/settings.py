"""What a run of Cool-Fusion is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fusion_jax.errors import InputError
from fusion_jax.options import FreeTexts
from fusion_jax.sampling.stops import stop_strings
from fusion_jax.settings import bounded

Mode = Literal["cool", "cool_shortest", "rerank", "cool_rerank"]
Combine = Literal["mean_ppl", "mean_log_ppl", "median_ppl", "primary_ppl"]
Norm = Literal["token", "char", "byte"]


@dataclass(frozen=True)
class CoolSettings:
    """How the models agree. The defaults are those of the paper and, where it is silent, of the specification."""

    mode: Mode = "cool_rerank"
    """cool: segments that end where every tokenizer can end a word; cool_shortest: where the one that wrote it can;
    rerank: the best of whole answers; cool_rerank: the best of these and of the answer of cool. The experiment, which
    compares them all, takes cool_rerank."""
    segment_tokens: int = 16
    """Tokens within which a segment ends at the latest."""
    words_per_segment: int = 1
    """Words of a segment."""
    max_segments: int = 512
    """Segments of an answer at most."""
    max_new_tokens: int = 512
    """Tokens of a single model's whole answer at most."""
    combine: Combine = "mean_ppl"
    """What the models' perplexities of a candidate are combined to; primary_ppl: the first model's."""
    norm: Norm = "token"
    """What a model's negative log-probability is divided by: its own tokens, or characters or bytes."""
    score_end: bool = True
    """Whether to stop is scored: the end token counts where a candidate ends the answer."""
    closed: bool = False
    """Whether a segment must begin with a new word, so that nobody continues the last one."""
    stop_strings: FreeTexts = ()
    """Texts that end an answer, which is cut before them."""
    loop_guard: bool = True
    """Whether an answer ends whose last three segments stand there four times in a row."""
    context: int = 0
    """Tokens that a text may have in any model; 0: the positions of the model that has fewest."""
    batch_size: int = 32
    """Prompts that are answered at once."""

    def __post_init__(self) -> None:
        least = ("segment_tokens", "words_per_segment", "max_segments", "max_new_tokens", "batch_size")
        bounded(self, *least, least=1)
        bounded(self, "context", least=0)
        for name, kinds in (("mode", Mode), ("combine", Combine), ("norm", Norm)):
            if getattr(self, name) not in get_args(kinds):
                problem = f"{getattr(self, name)!r} is not one of its choices"
                raise InputError(problem, field=name, cure=f"Choose one of {', '.join(get_args(kinds))}")
        stop_strings(self.stop_strings, "stop_strings")
