"""Answers to lm-eval's `generate_until` requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.harness.reading import Reader
from fusion_jax.evals.harness.scoring import Computing
from fusion_jax.models.folder import Model
from fusion_jax.sampling.beam_search import BeamSearch
from fusion_jax.sampling.generate import sampling_dtype
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sampling.stops import Stops

NEW_TOKENS = 256  # where a task does not say, as the `hf` backend has it
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLER = ("top_p", "top_k", "min_p", "repetition_penalty")
SEARCH = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")
KNOWN = ("until", *LIMITS, "do_sample", "temperature", *SAMPLER, *SEARCH)
IGNORED = ("use_cache",)  # says how to compute, not what


class Wanted(NamedTuple):
    """How a request is answered. limit: tokens at most; until: texts that end the answer, which is cut before them."""

    limit: int
    until: tuple[str, ...]
    sampler: Sampler
    search: BeamSearch | None


def wanted(given: Mapping[str, Any], model: Model, most: int, new_tokens: int = NEW_TOKENS) -> Wanted:
    """What a task's generation_kwargs ask for; what they leave open is as in the model's generation_config.json.

    A temperature counts unless do_sample is false. Where no limit is given and `new_tokens` would leave less than half
    of the positions, half of them.

    Raises:
      InputError: an argument that is not known or out of range; sampling without a temperature; a limit that leaves no
        position for the prompt.
    """
    for name in given:
        if name not in KNOWN + IGNORED:
            cure = f"Leave it out of the task's generation_kwargs; known are {', '.join(KNOWN)}"
            raise InputError("is not known", field=name, cure=cure)
    limits = [int(given[name]) for name in LIMITS if given.get(name) is not None]
    limit = limits[0] if limits else min(new_tokens, most // 2)
    if not 0 < limit < most and not model.config.encoder:
        problem = f"{limit} new tokens leave nothing of the model's {most} positions to the prompt"
        raise InputError(problem, field="max_gen_toks", cure=f"Give 1 to {most - 1}")
    temperature = float(given.get("temperature") or 0.0)
    if given.get("do_sample") is False:
        temperature = 0.0
    elif given.get("do_sample") and not temperature:
        raise InputError("sampling needs a temperature", field="do_sample", cure="Give one above 0, or do_sample false")
    own = {name: value for name, value in model.generation.items() if name in SAMPLER + SEARCH and value is not None}
    asked = {**own, **{name: given[name] for name in SAMPLER + SEARCH if given.get(name) is not None}}
    sampler = Sampler(temperature, **{name: asked[name] for name in SAMPLER if name in asked})
    return Wanted(limit, _until(given.get("until")), sampler, _search(asked))


def _until(given: Any) -> tuple[str, ...]:
    """Empty texts end nothing."""
    texts = [given] if isinstance(given, str) else list(given or ())
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"is {quoted(given)}, not a list of texts", field="until", cure="Give texts")
    return tuple(text for text in texts if text)


def _search(asked: Mapping[str, Any]) -> BeamSearch | None:
    beams, ngram = int(asked.get("num_beams", 1)), int(asked.get("no_repeat_ngram_size", 0))
    if beams == 1 and not ngram:
        return None
    return BeamSearch(beams, float(asked.get("length_penalty", 1.0)), asked.get("early_stopping", False), ngram)


def answers(
    model: Model,
    reader: Reader,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    how: Computing,
    *,
    new_tokens: int = NEW_TOKENS,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """What the model writes behind each context, cut before the first text that ends it; special tokens are left out.

    Ends are the stop tokens of generation_config.json and of the tokenizer, and the request's `until`. A context that
    leaves no room for the limit loses its beginning. Requests that are equal and greedy are answered once; sampled ones
    get different answers.

    Args:
      requests: contexts with their generation_kwargs. new_tokens: limit where they name none.

    Raises:
      InputError: see `wanted` and `generate_ids`.
    """
    most, out, done = how.positions(model), dict[int, str](), 0
    groups: dict[Wanted, list[int]] = {}
    for number, (_, given) in enumerate(requests):
        groups.setdefault(wanted(given, model, most, new_tokens), []).append(number)
    for asked, numbers in groups.items():
        greedy = asked.search is not None or asked.sampler.temperature == 0
        seen = Counter[str]()
        places: dict[tuple[str, int], list[int]] = {}
        for number in numbers:
            context = requests[number][0]
            places.setdefault((context, 0 if greedy else seen[context]), []).append(number)
            seen[context] += 1
        prompts = [reader.prompt(context, most if reader.encoder else most - asked.limit) for context, _ in places]
        names = [f"{context}\n{repeat}" for context, repeat in places]
        before = done

        def told(count: int, before: int = before) -> None:
            progress(before + count)

        for text, same in zip(_written(model, reader, prompts, names, asked, how, seed, told), places.values()):
            out |= dict.fromkeys(same, text)
        done += len(places)
    return [out[number] for number in range(len(requests))]


def _written(
    model: Model, reader: Reader, prompts: Sequence[Sequence[int]], names: Sequence[str], asked: Wanted, how: Computing,
    seed: int, progress: Callable[[int], None],
) -> list[str]:  # fmt: skip
    stops = Stops(reader.tokenizer, asked.until)
    found = generate_ids(
        model.params, model.config, prompts, max_new_tokens=asked.limit, sampler=asked.sampler, seed=seed,
        stop_ids=_stop_ids(model, reader) + stops.ids, ended=stops.ended if asked.until and not asked.search else None,
        row_ids=names, search=asked.search, batch_size=how.batch_size, mesh=how.mesh,
        dtype=how.dtype or sampling_dtype(model), progress=progress,
    )  # fmt: skip
    return [stops.said(one.ids)[0] for (one,) in found]


def _stop_ids(model: Model, reader: Reader) -> tuple[int, ...]:
    given = model.generation.get("eos_token_id")
    ids = set(given if isinstance(given, list) else [] if given is None else [given])
    return tuple(sorted(ids | ({reader.tokenizer.eos_token_id} - {None})))
