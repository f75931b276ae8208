"""Log-probabilities of lm-eval's requests: contexts that several continuations share are read once."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.evals.harness.reading import Ids, Pair, fitted
from fusion_jax.models.folder import Model
from fusion_jax.sampling.continuations import Choices, scores_of
from fusion_jax.sampling.generate import sampling_dtype
from fusion_jax.sampling.prompts import Ready, ready
from fusion_jax.sampling.sizes import PACKED_TOKENS, kept_width
from fusion_jax.sampling.whole import Text, text_scores

KEPT_TOKENS = 1 << 16  # of the contexts of a batch, together
Found = tuple[float, bool]


@dataclass(frozen=True)
class Computing:
    """What requests are computed on: a mesh and a dtype (None: see `sampling_dtype`), texts at once, and the positions
    that are used of the model's (0: all)."""

    mesh: Mesh | None = None
    dtype: Any = None
    batch_size: int = 32
    max_length: int = 0

    def positions(self, model: Model) -> int:
        """How many tokens the model reads."""
        return min(self.max_length or model.config.max_positions, model.config.max_positions)


def loglikelihoods(
    model: Model, pairs: Sequence[Pair], how: Computing, progress: Callable[[int], None] = lambda done: None
) -> list[Found]:
    """log p(continuation | context), a sum over its tokens, and whether each of them is the most probable one, of each
    pair.

    A context that is too long loses its beginning. Pairs that are equal are computed once; a context with several
    continuations is read once, and they stand side by side behind it (`scores_of`); any other text is read in one
    forward pass (`text_scores`). Softmax and sums are in at least float32.

    Args:
      progress: called with the number of different pairs done, as they are.

    Raises:
      InputError: a continuation that is longer than the model's positions; logits that are not finite.
    """
    most, encoder = how.positions(model), bool(model.config.encoder)
    cut = [fitted(pair, most, encoder=encoder) for pair in pairs]
    _check_ids(model, cut)
    shared, alone = _apart(model, dict.fromkeys(cut), most)
    made = ready(model.params, model.config, how.dtype or sampling_dtype(model), how.mesh)
    found: dict[Pair, Found] = {}
    for pair, logprob, greedy in itertools.chain(_of_shared(made, shared, how.batch_size), _of_alone(made, alone, how)):
        if not np.isfinite(logprob):
            cure = "Check the weights and the dtype"
            raise InputError("the model's logits are not finite", record=cut.index(pair) + 1, cure=cure)
        found[pair] = logprob, greedy
        progress(len(found))
    return [found[pair] for pair in cut]


def rolling(
    model: Model, texts: Sequence[Sequence[Pair]], how: Computing, progress: Callable[[int], None] = lambda done: None
) -> list[float]:
    """log p of each text, the sum over its windows (`reading.windows`); 0 of a text without a token."""
    found = iter(loglikelihoods(model, [pair for text in texts for pair in text], how, progress))
    return [float(sum(next(found)[0] for _ in text)) for text in texts]


def _check_ids(model: Model, pairs: Sequence[Pair]) -> None:
    size = model.config.vocab_size
    for number, pair in enumerate(pairs, 1):
        if max(*pair.context, *pair.continuation) >= size:
            problem = f"holds a token id outside 0..{size - 1}"
            raise InputError(problem, record=number, field="context", cure="Use the model's own tokenizer")


def _apart(model: Model, pairs: dict[Pair, None], most: int) -> tuple[dict[Ids, list[Ids]], list[Pair]]:
    """Contexts with several continuations, and the pairs of others.

    What a session keeps of a context must not depend on its continuation, and it reads the last token of that, too.
    """
    by_context: dict[Ids, list[Ids]] = defaultdict(list)
    for pair in pairs:
        by_context[pair.context].append(pair.continuation)
    shared, alone = dict[Ids, list[Ids]](), list[Pair]()
    for context, some in by_context.items():
        fits = [one for one in some if _fits(model, context, one, most)]
        if model.config.encoder or len(fits) > 1:
            shared[context] = fits
            some = [one for one in some if one not in set(fits)]
        alone += [Pair(context, one) for one in some]
    return shared, alone


def _fits(model: Model, context: Ids, continuation: Ids, most: int) -> bool:
    if model.config.encoder:
        return True
    both = len(context) + len(continuation)
    return both <= most and not any(len(context) <= place < both for place in model.config.positions.switches)


def _of_shared(model: Ready, shared: dict[Ids, list[Ids]], batch_size: int) -> Iterator[tuple[Pair, float, bool]]:
    """In batches of contexts that are kept at one width."""
    order = sorted(shared, key=len)
    for width, alike in itertools.groupby(order, lambda context: kept_width(len(context))):
        asked = [Choices(context, shared[context]) for context in alike]
        rows = min(batch_size, max(KEPT_TOKENS // width, 1), 1 << (len(asked) - 1).bit_length())
        for number, some in scores_of(model, asked, rows):
            for one in some:
                yield Pair(tuple(asked[number].prompt), one.ids), one.logprob, one.greedy


def _of_alone(model: Ready, alone: Sequence[Pair], how: Computing) -> Iterator[tuple[Pair, float, bool]]:
    texts = [Text((*context, *continuation), len(context)) for context, continuation in alone]
    for number, one in text_scores(model, texts, most=PACKED_TOKENS):
        yield alone[number], float(one.logprobs.sum(dtype=np.float64)), bool(one.greedy.all())
