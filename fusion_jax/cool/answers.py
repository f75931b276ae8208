"""Answers of several models to prompts: of each alone, of all together, and the one that they like best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jax.sharding import Mesh

from fusion_jax.arguments import texts as listed_texts
from fusion_jax.cool.choose import Opinion, combined, opinion
from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import Source, read_prompts, sources_of
from fusion_jax.cool.texts import Held, begin, encode_behind, tokens_before, written
from fusion_jax.cool.together import Written, check_room, write
from fusion_jax.cool.words import finished
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.sampling.session import Candidate, behind, scored, start
from fusion_jax.sampling.sizes import LEAST_PACKED, PACKED_TOKENS, chunks
from fusion_jax.sampling.stops import Stops, until

Prompts = Sequence[Sequence[Held]]
AT_ONCE = 1024  # prompts of which more than the answer is held


@dataclass(frozen=True)
class Whole:
    """An answer as a whole. by: who wrote it; ended: whether the answer stops there; score: the models' combined
    perplexity of it, lower is better, infinite for an empty one that does not stop; opinions: of each model."""

    by: str
    text: str
    ended: bool
    score: float = float("inf")
    opinions: tuple[Opinion, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was found for one prompt. text: by the mode that was asked for; alone: of each model; together: what they
    wrote a segment at a time; candidates: what was ranked, and `winner` among them; None and empty where the mode needs
    it not."""

    text: str
    alone: tuple[Whole, ...]
    together: Written | None
    candidates: tuple[Whole, ...] = ()
    winner: int | None = None


def fuse_generate(
    models: Mapping[str, Model] | Sequence[Model],
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    settings: CoolSettings = CoolSettings(),
    chat: bool = True,
    meshes: Sequence[Mesh | None] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answers that several models agree on, without training: Cool-Fusion (arXiv 2407.19807).

    Args:
      models: decoders with their tokenizers, whatever their vocabularies; by name, or in a list.
      max_new_tokens: of one model's whole answer, which modes that rank them need; None: as the settings say.
      chat: each prompt is a user message in each model's own chat template; else it is continued as it stands.
      meshes: what each model computes on; None: an equal share of the devices each, where there are as many.

    Raises:
      InputError: no model, one that is no decoder or has no fast tokenizer, tokenizers without a common word boundary,
        a prompt that leaves no room.
    """
    if max_new_tokens is not None:
        settings = replace(settings, max_new_tokens=max_new_tokens)
    sources, prompts = sources_of(_by_name(models), meshes, chat=chat), listed_texts(prompts, "prompts")
    check_prompts(sources, prompts, settings, chat=chat)
    out: list[str] = []
    for some in chunks(list(prompts), AT_ONCE):
        out += [one.text for one in answers(sources, some, settings, chat=chat)]
        progress(len(out))
    return out


def _by_name(models: Mapping[str, Model] | Sequence[Model]) -> dict[str, Model]:
    named = dict(models) if isinstance(models, Mapping) else {f"model {n}": model for n, model in enumerate(models, 1)}
    for name, model in named.items():
        if not isinstance(model, Model):
            raise InputError("is no model", file=name, field="models", cure="Give what fj.load returns")
    return named


def check_prompts(
    sources: Sequence[Source], prompts: Sequence[str], s: CoolSettings, *, chat: bool = True, file: str | None = None
) -> None:
    """Refuse, before a first answer, prompts of a file that leave no room for one."""
    for first in range(0, len(prompts), AT_ONCE):
        some = prompts[first : first + AT_ONCE]
        read = list(zip(*(read_prompts(source, some, chat) for source in sources), strict=True))
        check_room(sources, read, s, whole=s.mode not in ("cool", "cool_shortest"), file=file, before=first)


def answers(
    sources: Sequence[Source], prompts: Sequence[str], s: CoolSettings, *, chat: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:  # fmt: skip
    """Answers to prompts by the mode of the settings.

    Args:
      progress: called with the number of prompts whose answers were written together, or ranked.
    """
    prompts = listed_texts(prompts, "prompts")
    read = list(zip(*(read_prompts(source, prompts, chat) for source in sources), strict=True))
    together: list[Written | None] = [None] * len(prompts)
    if s.mode not in ("cool", "cool_shortest"):
        check_room(sources, read, s, whole=True)
    if s.mode != "rerank":
        for done, (number, one) in enumerate(write(sources, read, s), 1):
            together[number] = one
            progress(done)
    if s.mode in ("cool", "cool_shortest"):
        return [Answer(one.text, (), one) for one in together if one is not None]
    alone = solos(sources, read, s)
    candidates = [
        [*own, *([] if one is None else [Whole("together", one.text, one.ended)])]
        for own, one in zip(alone, together, strict=True)
    ]
    ranked = rank(sources, read, candidates, s)
    progress(len(prompts))
    return [best(own, one, some) for own, one, some in zip(alone, together, ranked, strict=True)]


def best(alone: Sequence[Whole], together: Written | None, candidates: Sequence[Whole]) -> Answer:
    """The answer whose candidate has the lowest score, the first of equals."""
    winner = min(range(len(candidates)), key=lambda place: candidates[place].score)
    return Answer(candidates[winner].text, tuple(alone), together, tuple(candidates), winner)


def solos(sources: Sequence[Source], prompts: Prompts, s: CoolSettings) -> list[list[Whole]]:
    """The greedy answer of each model alone to each prompt."""
    out: list[list[Whole]] = [[] for _ in prompts]
    for number, source in enumerate(sources):
        how = source.model.how
        found = generate_ids(
            source.model.params, how.config, [held[number].tokens.ids for held in prompts], mesh=how.mesh,
            max_new_tokens=s.max_new_tokens, stop_ids=source.ends, allowed=~source.forbidden, dtype=how.dtype,
            batch_size=s.batch_size,
            ended=Stops(source.words.tokenizer, s.stop_strings).ended if s.stop_strings else None,
        )  # fmt: skip
        words = [one.words for one in sources]
        said = written(source.words, number, [(begin(words, held), c.ids) for held, (c,) in zip(prompts, found)])
        for own, text, (completion,) in zip(out, said, found, strict=True):
            cut, stopped = until(finished(text), s.stop_strings)
            own.append(Whole(source.name, cut, completion.finished and not stopped))
    return out


def rank(
    sources: Sequence[Source], prompts: Prompts, candidates: Sequence[Sequence[Whole]], s: CoolSettings
) -> list[list[Whole]]:
    """Whole answers with what all models make of them; equal ones are scored once, `batch_size` prompts at a time."""
    out = []
    for first in range(0, len(prompts), s.batch_size):
        some = slice(first, first + s.batch_size)
        told = [_opinions(number, sources, prompts[some], candidates[some], s) for number in range(len(sources))]
        for row, own in enumerate(candidates[some]):
            opinions = [tuple(one[row][c.text, c.ended] for one in told if (c.text, c.ended) in one[row]) for c in own]
            scores = [combined(some, s) if some else float("inf") for some in opinions]
            found = zip(own, scores, opinions, strict=True)
            out.append([replace(candidate, score=score, opinions=each) for candidate, score, each in found])
    return out


def _opinions(
    number: int, sources: Sequence[Source], prompts: Prompts, candidates: Sequence[Sequence[Whole]], s: CoolSettings
) -> list[dict[tuple[str, bool], Opinion]]:
    """What one model makes of each different answer to each prompt; nothing of one that its positions do not hold, or
    that would change its first token."""
    source, words = sources[number], [one.words for one in sources]
    different = [dict.fromkeys((c.text, c.ended) for c in own if c.text or c.ended) for own in candidates]
    asked = [(row, text, ended) for row, own in enumerate(different) for text, ended in own]
    begun = [begin(words, held) for held in prompts]
    encoded = encode_behind(source.words, number, [(begun[row], text) for row, text, _ in asked])
    offered: list[list[Candidate]] = [[] for _ in prompts]
    places: list[list[tuple[str, bool, tuple[int, ...], int]]] = [[] for _ in prompts]
    out: list[dict[tuple[str, bool], Opinion]] = [{} for _ in prompts]
    for (row, text, ended), one in zip(asked, encoded, strict=True):
        held = prompts[row][number]
        ids = one.ids + ((source.end,) if ended and s.score_end else ())
        if len(ids) > source.most(len(held.tokens.ids), s) or ids[:1] != held.tokens.ids[:1]:
            out[row][text, ended] = Opinion((), 0.0, None)
            continue
        new = tokens_before(one, len(held.prompt))
        offered[row].append(behind(held.tokens.ids, ids, new))
        places[row].append((text, ended, ids, new))
    session = start(source.model, [held[number].tokens.ids for held in prompts], rows=s.batch_size)
    found = scored(source.model, session, offered, most=max(PACKED_TOKENS // s.batch_size, LEAST_PACKED))
    for own, where, told in zip(out, places, found, strict=True):
        for (text, ended, ids, new), read in zip(where, told, strict=True):
            own[text, ended] = opinion(ids[new:], read.logprobs[len(read.logprobs) - len(ids) + new :], text, ended, s)
    return out
