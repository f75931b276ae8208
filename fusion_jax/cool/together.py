"""Several models write answers together, a segment at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusion_jax.cool.choose import Choice, choose
from fusion_jax.cool.propose import Lane, lane, proposals
from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import Source, check_boundaries
from fusion_jax.cool.texts import Held, Text, begin
from fusion_jax.errors import InputError
from fusion_jax.sampling.session import replace, start
from fusion_jax.sampling.stops import until

LOOP_SEGMENTS, LOOP_TIMES = 3, 4


@dataclass(frozen=True)
class Written:
    """An answer. ended: a model ended it; stop: end, max_segments, context, stalled, loop or stop_string; tokens: how
    many each model counts in it, without the segment that ended it; unknown: how many of these stand for characters
    that the model has no token for."""

    text: str
    ended: bool
    stop: str
    steps: tuple[Choice, ...]
    tokens: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()


def write(
    sources: Sequence[Source], prompts: Sequence[Sequence[Held]], s: CoolSettings
) -> Iterator[tuple[int, Written]]:
    """Every prompt's number and answer, as they are finished; a finished one gives its place to the next.

    Args:
      prompts: each as every model reads it.

    Raises:
      InputError: tokenizers without a common word boundary; a prompt without a token, or that leaves no room for a
        segment in a model's positions.
    """
    words = [source.words for source in sources]
    check_boundaries(sources)
    check_room(sources, prompts, s)
    most = [min(one.most(len(h.tokens.ids), s) for one, h in zip(sources, held, strict=True)) for held in prompts]
    waiting = list(range(len(prompts)))[::-1]
    rows = min(s.batch_size, len(prompts))
    lanes: list[Lane] = []
    texts: dict[int, Text] = {}
    numbers: dict[int, int] = {}
    steps: dict[int, list[Choice]] = {}
    while waiting or texts:
        came = [row for row in range(rows) if row not in texts][: len(waiting)]
        for row in came:
            numbers[row], steps[row] = waiting.pop(), []
            texts[row] = begin(words, prompts[numbers[row]])
        lanes = _seated(sources, lanes, {row: texts[row] for row in came}, s) if came else lanes
        going = {row: text for row, text in texts.items() if not _no_room(text, most[numbers[row]], s)}
        if going:
            limits = {row: most[numbers[row]] for row in going}
            for row, choice in choose(lanes, going, proposals(lanes, going, s), limits, s).items():
                steps[row].append(choice)
                _stopped(texts[row], choice, s)
        for row in [row for row, text in texts.items() if text.stop]:
            text = texts.pop(row)
            began = prompts[numbers[row]]
            new = [now.tokens.ids[len(old.tokens.ids) :] for now, old in zip(text.held, began, strict=True)]
            unknown = tuple(ids.count(one.words.tokenizer.unk_token_id) for one, ids in zip(sources, new, strict=True))
            answer = Written(text.text, text.ended, text.stop, tuple(steps[row]), tuple(map(len, new)), unknown)
            yield numbers[row], answer


def _seated(sources: Sequence[Source], lanes: Sequence[Lane], came: dict[int, Text], s: CoolSettings) -> list[Lane]:
    """The models with new texts in these rows."""
    ids = [{row: text.held[number].tokens.ids for row, text in came.items()} for number in range(len(sources))]
    if not lanes:
        begun = [start(one.model, list(own.values())) for one, own in zip(sources, ids, strict=True)]
        return [lane(number, *both, s) for number, both in enumerate(zip(sources, begun, strict=True))]
    for one, own in zip(lanes, ids, strict=True):
        one.session = replace(one.source.model, one.session, own)
    return list(lanes)


def check_room(
    sources: Sequence[Source], prompts: Sequence[Sequence[Held]], s: CoolSettings, *, whole: bool = False,
    file: str | None = None, before: int = 0,
) -> None:  # fmt: skip
    """Refuse prompts without a token, or behind which a model's positions have no room for a segment.

    The model that may have fewest tokens rules, whichever counts most of them.

    Args:
      whole: there has to be room for a whole answer. file, before: where the prompts are from, behind so many others.

    Raises:
      InputError: names the prompt.
    """
    name, count = ("max_new_tokens", s.max_new_tokens) if whole else ("segment_tokens", s.segment_tokens + 1)
    for number, held in enumerate(prompts, before + 1):
        most = min(one.most(len(h.tokens.ids), s) for one, h in zip(sources, held, strict=True))
        for one, source in zip(held, sources, strict=True):
            tokens = len(one.tokens.ids)
            if not tokens:
                problem = f"has no token in {source.name}"
                raise InputError(problem, file=file, record=number, field="prompt", cure="Give a text")
            if tokens + count > most:
                told = f"{tokens} tokens in {source.name} and {count} new ones"
                problem = f"{told} exceed the {most} that all models read"
                cure = f"Lower {name}" if count >= most else "Shorten the prompt"
                cure += f", or lower {name}" if tokens < most > count else ""
                raise InputError(problem, file=file, record=number, field="prompt", cure=cure)


def _no_room(text: Text, most: int, s: CoolSettings) -> bool:
    """Whether the longest tokens of a text leave no room for a segment; it ends there."""
    longest = max(len(one.tokens.ids) for one in text.held)
    if longest + s.segment_tokens + 1 > most:
        text.stop = "context"
    return bool(text.stop)


def _stopped(text: Text, choice: Choice, s: CoolSettings) -> None:
    """Why a text ends with this step, if it does; the winner that ends it becomes part of it."""
    if not choice.offers:
        offered = any(one is not None and (one.text or one.end) for one in choice.proposals)
        text.stop = "context" if offered else "stalled"
        return
    winner = choice.offers[choice.winner]
    if winner.end:
        text.text, text.ended, text.stop = text.text + winner.text, True, "end"
    cut, found = until(text.text, s.stop_strings)
    if found:
        text.text, text.ended, text.stop = cut, False, "stop_string"
    elif not text.stop and s.loop_guard and _loops(text.segments):
        text.stop = "loop"
    elif not text.stop and len(text.segments) >= s.max_segments:
        text.stop = "max_segments"


def _loops(segments: Sequence[str]) -> bool:
    """Whether the last three segments stand there four times in a row."""
    last = list(segments[-LOOP_SEGMENTS * LOOP_TIMES :])
    return len(last) == LOOP_SEGMENTS * LOOP_TIMES and last == last[-LOOP_SEGMENTS:] * LOOP_TIMES
