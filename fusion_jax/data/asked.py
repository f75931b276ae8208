"""Prompts and ready responses, as stages that ask models read them; their fields are told in `data.records`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fusion_jax.data import formats
from fusion_jax.data.messages import Place, check_writable, text
from fusion_jax.data.records import Ids, count_malformed, given_id, prompt_id
from fusion_jax.errors import InputError, quoted
from fusion_jax.jsonl import Record, Records, numbered


def _asked_text(fields: Mapping[str, Any], kind: str, place: Place) -> str:
    """The text of a prompt that is one user message and nothing besides."""
    messages = formats.asked(fields, place)
    for name in ("system", "system_prompt", "history"):
        if fields.get(name):
            raise place.error("is not read: prompts are sampled alone", name, "Write it into the prompt, or remove it")
    if not messages:
        raise formats.missing("prompt", kind, fields, place)
    if len(messages) != 1:
        problem = "holds a system message or more than one user message"
        raise place.error(problem, "prompt", "Sampling reads single-turn prompts only")
    return messages[0]["content"]


def parse_prompts(
    records: Iterable[Record], *, file: str | None = None, skipped: Counter[str] | None = None
) -> list[Record]:
    """Prompts of one user message with an id each, and further fields; not those of responses.

    Args:
      skipped: counts records that are wrong, by reason, and leaves them out; None: they are errors.

    Raises:
      InputError: another conversation than one user message; a prompt or a given id that stands twice; an answer that
        is no text; no prompt.
    """
    out, seen = list[Record](), dict[str, Record]()
    lines: dict[str, int] = {}
    for number, record in numbered(records):
        try:
            prompt = _prompt(record, Place(file, number), seen, lines)
        except InputError as error:
            if skipped is None:
                raise
            count_malformed(error, skipped)
            continue
        seen[prompt["prompt_id"]], lines[prompt["prompt_id"]] = prompt, number
        out.append(prompt)
    if not out:
        raise InputError("holds no prompt", file=file, cure="Give at least one")
    return Records(out, list(lines.values()))


def _prompt(record: Record, place: Place, seen: Mapping[str, Record], lines: Mapping[str, int]) -> Record:
    """A prompt whose fields are checked, and that is not among those before it."""
    content, given = _asked_text(formats.fields_of(record, place), "prompts", place), given_id(record, place)
    identity = given or prompt_id(content)
    if identity in seen:
        if seen[identity]["prompt"].strip() != content.strip():
            problem = f"{quoted(identity)} stands for another prompt in record {lines[identity]}"
            raise place.error(problem, "prompt_id", "Give each prompt an id of its own, or leave the ids out")
        cure = "Give --responses" if "response" in record and "source_model" in record else "Remove one of the two"
        raise place.error(f"repeats record {lines[identity]}", "prompt_id" if given else "prompt", cure)
    _check_known(record, place)
    kept = formats.carried(record, "response", "reward", "sample", "source_model")
    return {**kept, "prompt_id": identity, "prompt": content}


def _check_known(record: Record, place: Place) -> None:
    """Refuse what a prompt or a response carries on to later stages and these cannot read or write."""
    tests = record.get("tests")
    if tests is not None and not (isinstance(tests, str) and tests.strip()):
        raise place.error("is no text of Python statements", "tests", "Write the tests, or leave the field out")
    for name in ("answer", "skill"):
        if record.get(name) is not None:
            text(record, name, place, blank=True)
    wordings = record.get("wordings")
    if wordings is not None and not (
        isinstance(wordings, list) and all(isinstance(w, str) and w.strip() for w in wordings)
    ):
        raise place.error("is not a list of texts", "wordings", 'Write ["The answer is 4.", "4"], or leave it out')
    check_writable(record, place)


def check_answers(records: Iterable[Record], *, file: str | None, cure: str) -> None:
    """Refuse parsed prompts or responses if no record of a prompt brings its answer."""
    records = records if isinstance(records, Records) else list(records)
    known = {r["prompt_id"] for r in records if r.get("answer") is not None}
    for number, record in numbered(records):
        if record["prompt_id"] not in known:
            raise Place(file, number).error("is missing", "answer", cure)


def parse_responses(
    records: Iterable[Record], *, file: str | None = None, skipped: Counter[str] | None = None
) -> list[Record]:
    """Ready responses: text fields and numbers checked, ids and sample numbers filled in.

    A response without an id has the one that another record gives to the same prompt, else `prompt_id` of the prompt.

    Args:
      skipped: counts records that are wrong in themselves, by reason, and leaves them out; None: they are errors.

    Raises:
      InputError: a field of a wrong type; an id with two prompts or two answers; a sample that stands twice.
    """
    out, lines = list[Record](), list[int]()
    ids, answers = Ids.none(), Ids.none()
    for number, whole in numbered(records):
        place = Place(file, number)
        try:
            formats.fields_of(whole, place)
            found = [_response(record, place) for record in formats.generated(whole, file, place)]
        except InputError as error:
            if skipped is None:
                raise
            count_malformed(error, skipped)
            continue
        out += found
        lines += [number] * len(found)
    if not out:
        raise InputError("holds no response", file=file, cure="Give at least one")
    named = {r["prompt"]: r["prompt_id"] for r in reversed(out) if r["prompt_id"] is not None}
    for number, record in zip(lines, out):
        place, prompt = Place(file, number), record["prompt"]
        identity = record["prompt_id"] = record["prompt_id"] or named.get(prompt) or prompt_id(prompt)
        ids.check(identity, prompt.strip(), "prompt", place)
        if record.get("answer") is not None:
            answers.check(identity, record["answer"], "answer", place)
    _number_samples(out, lines, file)
    return Records(out, lines)


def _response(record: Record, place: Place) -> Record:
    """A response whose fields are checked; its id and sample number are None where it brings none."""
    prompt = _asked_text(formats.fields_of(record, place), "responses", place)
    source = text(record, "source_model", place)
    text(record, "response", place, blank=True)
    reward = record.get("reward")
    if reward is not None:
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise place.error(f"is {quoted(reward)}, not a number", "reward", "Write a number or leave the field out")
        try:
            finite = math.isfinite(reward)
        except OverflowError:
            finite = False
        if not finite:
            raise place.error("is not finite", "reward", "Write a finite number or leave the field out")
    sample = record.get("sample")
    if sample is not None:
        if isinstance(sample, bool) or not isinstance(sample, int):
            raise place.error(f"is {quoted(sample)}, not a whole number", "sample", "Number a source's samples from 0")
        if not 0 <= sample < 2**31:
            raise place.error(f"is {quoted(sample)}, out of range", "sample", "Number a source's samples from 0")
    _check_known(record, place)
    known = {"prompt_id": given_id(record, place), "prompt": prompt, "source_model": source, "sample": sample}
    passed = record.get("passed")
    if passed is not None:
        if not isinstance(passed, bool) and passed not in (0, 1):
            raise place.error(f"is {quoted(passed)}, neither true nor false", "passed", "Write one, or leave it out")
        known["passed"] = bool(passed)
    return {**formats.carried(record), **known}


def _number_samples(responses: list[Record], lines: list[int], file: str | None) -> None:
    """Number the samples that have no number: the lowest free ones of their prompt and source."""
    taken: dict[tuple[str, str, int], int] = {}
    for number, record in zip(lines, responses):
        key = (record["prompt_id"], record["source_model"], record["sample"])
        if record["sample"] is None:
            continue
        if key in taken:
            problem = f"stands twice for this prompt and '{record['source_model']}': also in record {taken[key]}"
            raise Place(file, number).error(problem, "sample", "Remove one of the two, or leave the numbers out")
        taken[key] = number
    free = Counter[tuple[str, str]]()
    for record in responses:
        if record["sample"] is None:
            of = (record["prompt_id"], record["source_model"])
            while (*of, free[of]) in taken:
                free[of] += 1
            record["sample"] = free[of]
            free[of] += 1
