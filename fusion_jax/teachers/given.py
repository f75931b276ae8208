"""Teachers that were read elsewhere: what vLLM says of a prompt's tokens becomes rows of a teacher store.

A file of JSON lines, one for each text and in their order: `{"prompt_token_ids": [...], "prompt_logprobs": [...]}`, or
a whole answer of vLLM's /v1/completions, whose only choice has both. The prompt is the text's own tokens and one more,
whichever: vLLM says what it expected of each token of a prompt but the first, so that the last token's distribution is
that of the one more. `prompt_logprobs[i]` is null for the first token, else {"ID": {"logprob": x, "rank": r, ...}} with
the k most probable tokens and, where it is none of them, token i itself.

Log-probs are normalised, so a row's log-sum-exp is kept as 0; what scales logits (`rules` chat_v1, `rounding` bfloat16)
then works on log-probs.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fusion_jax.copies import Fetched
from fusion_jax.data.documents import Document, TeacherRow, TeacherText, documents_fingerprint, read_before
from fusion_jax.errors import InputError
from fusion_jax.files import regular_file
from fusion_jax.json_files import parse_json
from fusion_jax.jsonl import Record
from fusion_jax.teachers.reading import tokenizer_fingerprint
from fusion_jax.teachers.store import StoreIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASK = "Ask vLLM for prompt_logprobs, with return_token_ids"
WRITE = "Write the prompts with experiments/cache_teacher.py --prompts"


def prompts_of(texts: Sequence[TeacherText], bos: int | None) -> Iterator[Record]:
    """For each text the prompt that vLLM is to be asked for: {"prompt": its tokens, and the first of them again}.

    bos: stands before each text that does not begin with it; see `leading_token`.
    """
    return ({"prompt": [*read_before(text, bos), *text.ids.tolist(), int(text.ids[0])]} for text in texts)


class Given:
    """A file of answers. Lines are read when they are asked for; the file is read through once, for its hash and to
    find them.

    Args:
      texts: what the answers are of, in a teacher's tokens; size: of its vocabulary; k: entries that are kept; bos: as
        of `prompts_of`.

    Raises:
      InputError: no such file; another number of answers than of texts.
    """

    def __init__(
        self, file: str | os.PathLike[str], texts: Sequence[TeacherText], size: int, k: int, bos: int | None = None
    ) -> None:
        self.file, self._texts, self._size, self._k, self._bos = file, texts, size, k, bos
        self._copy = Fetched(regular_file(file, cure="Give a .jsonl file"))
        digest, places, start = hashlib.sha256(), [], 0
        with open(self._copy.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                digest.update(line)
                if line.strip():
                    places.append((number, start))
                start += len(line)
        self._places, self.sha256 = places, digest.hexdigest()
        if len(places) != len(texts):
            problem = f"has {len(places)} answers for {len(texts)} texts"
            cure = f"{WRITE}, and keep their order; windows of texts depend on --max-length and on tokenizers"
            raise InputError(problem, file=file, cure=cure)

    def identity(self, tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> StoreIdentity:
        """What a store of the answers is known by: the model is known by the file's hash alone."""
        reader, read = tokenizer_fingerprint(tokenizer, documents), documents_fingerprint(documents)
        return StoreIdentity(f"given {self.sha256}", reader, read, self._k, len(documents))

    def rows(self, wanted: range) -> list[TeacherRow]:
        """The rows of a range of texts: what `write_store` asks for.

        Raises:
          InputError: an answer to another prompt, or one that is not as the module's text says; names its line.
        """
        out = []
        with open(self._copy.path, "rb") as lines:
            for index in wanted:
                number, start = self._places[index]
                lines.seek(start)
                record = parse_json(lines.readline(), file=self.file, record=number, cure=ASK, lone_surrogates=True)
                text = self._texts[index]
                answer = _Answer(record, self.file, number, read_before(text, self._bos))
                out.append(answer.row(text, self._size, self._k))
        return out


class _Answer:
    """One line. number: of it; before: tokens that stand before the text."""

    def __init__(self, record: Record, file: str | os.PathLike[str], number: int, before: list[int]) -> None:
        self.file, self.number, self.record, self.before = file, number, record, before
        if "choices" in record:
            choices = record["choices"]
            if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
                self.fail("is not one choice", "choices", "Ask for one prompt at a time, with n 1")
            self.record = choices[0]

    def fail(self, problem: str, field: str, cure: str = ASK) -> NoReturn:
        raise InputError(problem, file=self.file, record=self.number, field=field, cure=cure)

    def row(self, text: TeacherText, size: int, k: int) -> TeacherRow:
        self._check_ids([*self.before, *text.ids.tolist()])
        given, tokens = self.record.get("prompt_logprobs"), len(text.ids)
        if not isinstance(given, list):
            self.fail("is missing" if given is None else "is no list", "prompt_logprobs")
        first = len(self.before)
        if len(given) != first + tokens + 1:
            self.fail(f"has {len(given)} entries for {first + tokens + 1} tokens", "prompt_logprobs")
        if given[0] is not None:
            self.fail("is not null, although nothing predicts the first token", "prompt_logprobs[0]")
        given = given[first:]
        ids, logprobs = np.empty((tokens, k), np.int32), np.empty((tokens, k), np.float64)
        own = np.zeros(tokens)  # of each token under the model, where it is scored
        for place in range(1, tokens + 1):
            found = self._entries(given[place], place + first)
            kept = [(-logprob, rank, i) for i, (logprob, rank) in found.items() if i < size]
            if len(kept) < k:
                problem = f"has {len(kept)} tokens of the vocabulary, k is {k}"
                self.fail(problem, f"prompt_logprobs[{place + first}]", "Ask vLLM for more, or keep fewer (--k)")
            kept = sorted(kept)[:k]
            ids[place - 1], logprobs[place - 1] = [i for _, _, i in kept], [-x for x, _, _ in kept]
            if place < tokens and text.scored[place]:
                if int(text.ids[place]) not in found:
                    self.fail(f"lacks token {text.ids[place]}, which follows", f"prompt_logprobs[{place + first}]")
                own[place] = found[int(text.ids[place])][0]
        masses = np.exp(logprobs).sum(-1)
        if masses.max() > 1.01:
            problem = f"are no log-probs: their probabilities sum to {masses.max():.4g}"
            cure = "Start vLLM with --logprobs-mode raw_logprobs"
            self.fail(problem, f"prompt_logprobs[{int(masses.argmax()) + 1 + first}]", cure)
        scored = text.scored[1:]
        return TeacherRow(
            text.ids, text.offsets, ids, logprobs.astype(np.float16), np.zeros(tokens, np.float32),
            np.clip(1 - masses, 0, 1).astype(np.float32), np.asarray([-own.sum(), scored.sum()], np.float32),
        )  # fmt: skip

    def _check_ids(self, wanted: list[int]) -> None:
        """The prompt is the text's tokens and one more."""
        field, ids = "prompt_token_ids", self.record.get("prompt_token_ids")
        if not isinstance(ids, list):
            self.fail("is missing" if ids is None else "is no list", field)
        for place, (one, other) in enumerate(zip(ids, wanted)):
            if one != other:
                self.fail(f"token {place} is {one!r}, the tokenizer makes {other} of this text", field, WRITE)
        if len(ids) == len(wanted):
            self.fail("ends with the text, and what follows its last token is unknown", field, WRITE)
        if len(ids) != len(wanted) + 1:
            self.fail(f"has {len(ids)} tokens, the text and one more are {len(wanted) + 1}", field, WRITE)

    def _entries(self, entry: Any, place: int) -> dict[int, tuple[float, float]]:
        """{token: (log-prob, rank)} of a position."""
        field = f"prompt_logprobs[{place}]"
        if not isinstance(entry, dict):
            self.fail("is no JSON object", field)
        out = {}
        for name, value in entry.items():
            if not (name.isascii() and name.isdecimal()):
                self.fail(f"has the key {name!r}, which is no token's number", field)
            logprob, rank = (value.get("logprob"), value.get("rank")) if isinstance(value, dict) else (None, None)
            if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not math.isfinite(logprob):
                self.fail(f"has no log-prob of token {name}", field)
            if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
                self.fail(f"has a rank of token {name} that is no whole number", field)
            out[int(name)] = (min(float(logprob), 0.0), math.inf if rank is None else rank)
        return out
