"""The kinds of record and their validation. A malformed record is an error; an unusable one is a counted drop.

Files (JSON lines):
  prompts     {"prompt": str, "prompt_id"?: str, "answer"?: str, "skill"?: str}
  responses   {"prompt": str, "source_model": str, "response": str, "prompt_id"?: str, "sample"?: int,
               "reward"?: number, "answer"?: str, "skill"?: str}
  quadruples  the official schema of WRPO: {"prompt_id", "prompt": {"role", "content"},
               "chosen": [{"role", "content"} by the source, {...} by the target], "rejected": [{...}]}
  pairs       {"prompt": str or [messages], "chosen": str or [message], "rejected": str or [message]}
  sft         {"prompt": str, "response": str}, {"messages": [...]}, {"conversations": [{"from": "human" or "gpt",
               "value"}, ...]}, or a quadruple (prompt and chosen[0] are used; null is a counted drop)

The other forms that these are found in are listed in docs/data.md and read by `fusion_jax.data.formats`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from fusion_jax.data import formats, ranked, scored_pairs
from fusion_jax.data.messages import Conversation, Message, Place, check_text, messages_of, text
from fusion_jax.display import brief
from fusion_jax.errors import InputError, quoted
from fusion_jax.jsonl import Record, numbered

__all__ = [
    "Conversation", "Message", "OnBad", "Place", "Row", "messages_of", "parse_pair", "parse_quad", "parse_rows",
    "parse_sft", "prompt_id", "text", "unusable",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One record as text: a conversation and the responses to it (1 for sft, 2 a pair, 3 a quadruple). Tokenised, it is
    a `batches.Example`, which has a row of tokens for each response.

    messages: the conversation up to and with the last user message. A response of None is absent (a quadruple whose
    source response is missing). values: numbers of each response, see `batches.Example.values`.
    """

    name: str
    messages: Conversation
    responses: tuple[str | None, ...]
    values: tuple[tuple[float, ...], ...] = ()

    def __repr__(self) -> str:
        return brief(self)


def prompt_id(prompt: str) -> str:
    """A stable id of a prompt's text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def given_id(record: Mapping[str, Any], place: Place) -> str | None:
    """The id that a record brings, as text (7 and "7" are the same), or None.

    Raises:
      InputError: it is neither a text nor a whole number, or it is blank.
    """
    value = record.get("prompt_id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise place.error(f"is {quoted(value)}, neither text nor a whole number", "prompt_id", "Write a JSON string")
    if isinstance(value, int):
        if value.bit_length() > 1000:
            raise place.error(f"is {quoted(value)}", "prompt_id", "Write a JSON string")
        return str(value)
    return text(record, "prompt_id", place)


@dataclass
class Ids:
    """What each id of a file stands for, and in which record it stands first."""

    places: dict[str, Place]
    known: dict[str, Any]

    @classmethod
    def none(cls) -> Ids:
        return cls({}, {})

    def check(self, identity: str, what: Any, field: str, place: Place) -> None:
        """Refuse an id that stands for something else in an earlier record.

        field: what differs: "prompt", "answer".
        """
        before = self.known.setdefault(identity, what)
        first = self.places.setdefault(identity, place)
        if before != what:
            problem = f"{quoted(identity)} has another {field} than in record {first.record}"
            raise place.error(problem, "prompt_id", "Give each prompt an id of its own, or leave the ids out")


def parse_quad(record: Record, place: Place) -> Row:
    """A quadruple of the official schema; `chosen[0]` may be null (no source response)."""
    fields = formats.fields_of(record, place)
    if "prompt" not in fields:
        raise formats.missing("prompt", "quad", fields, place)
    formats.asked(fields, place)
    for name in ("chosen", "rejected"):
        if name not in fields:
            raise formats.missing(name, "quad", fields, place)
    chosen, rejected = fields["chosen"], fields["rejected"]
    if not isinstance(chosen, list) or len(chosen) != 2:
        raise place.error(
            "must hold exactly two responses",
            "chosen",
            "Give [source's message, target's message] (the first may be null)",
        )
    if not isinstance(rejected, list) or len(rejected) != 1:
        raise place.error("must hold exactly one response", "rejected", "Give [message]")
    if chosen[1] is None or rejected[0] is None:
        raise place.error("is not a response", "chosen[1]" if chosen[1] is None else "rejected[0]", "Write a message")
    sides = [("chosen[0]", chosen[0]), ("chosen[1]", chosen[1]), ("rejected[0]", rejected[0])]
    return Row(row_name(record, place), *formats.answered("quad", fields, sides, place))


def parse_pair(record: Record, place: Place) -> Row:
    """A pair; of a quadruple the target's own two responses are taken (on-policy DPO)."""
    fields = ranked.as_pair(formats.fields_of(record, place), place)
    formats.check_paired(fields, place)
    if formats.is_quad(fields.get("chosen")) and "rejected" in fields:
        quad = parse_quad(record, place)
        return Row(quad.name, quad.messages, quad.responses[1:])
    for name in ("chosen", "rejected"):
        if name not in fields:
            raise formats.missing(name, "pair", fields, place)
    sides = [(name, fields[name]) for name in ("chosen", "rejected")]
    return Row(row_name(record, place), *formats.answered("pair", fields, sides, place))  # None: no answer is worse


def parse_scored_pair(record: Record, place: Place, *, kind: str) -> Row:
    """A pair with its log-probs under N sources, as InfiFPO's records have them, which become `Row.values`."""
    return replace(parse_pair(record, place), values=scored_pairs.log_probs(record, kind, place))


def parse_sft(record: Record, place: Place) -> Row:
    """A conversation with its last answer, in any of the documented forms."""
    fields = formats.fields_of(record, place)
    formats.check_paired(fields, place)
    name = row_name(record, place)
    found = formats.dialogue(fields, place)
    if found is not None:
        return Row(name, found[0], (found[1],))
    if formats.is_quad(fields.get("chosen")):
        return Row(name, *formats.answered("sft", fields, [("chosen[0]", fields["chosen"][0])], place))
    answers = [k for k in ("chosen", *formats.ANSWERS) if k in fields]
    if not answers and "question" in fields and "answer" in fields:  # GSM8K's form
        answers = ["answer"]
    if not answers:
        raise formats.missing("response", "sft", fields, place)
    row = Row(name, *formats.answered("sft", fields, [(k, fields[k]) for k in answers], place))
    formats.same_answers(row.responses, answers, place)
    return Row(name, row.messages, row.responses[:1])


def row_name(record: Record, place: Place) -> str:
    """What the row of a record is called: its id or, without one, its place."""
    identity = given_id(record, place) if isinstance(record, Mapping) else None
    return str(place.record) if identity is None else identity


OnBad = Literal["error", "skip"]
PARSERS: dict[str, Callable[[Record, Place], Row]] = {
    "quad": parse_quad,
    "pair": parse_pair,
    "sft": parse_sft,
    **{kind: partial(parse_scored_pair, kind=kind) for kind in scored_pairs.FIELDS},
}
REASONS = 20  # kinds of malformed records that are counted each by itself


def unusable(row: Row) -> str | None:
    """Why a well-formed row cannot be trained on, or None."""
    if row.responses[-1] is None:
        return "no source response" if len(row.responses) == 1 else ranked.NO_WORSE
    if any(r is not None and not r.strip() for r in row.responses):
        return "blank response"
    if len(row.responses) > 1 and row.responses[-2] == row.responses[-1]:
        return "chosen equals rejected"
    return None


def parse_rows(
    records: Iterable[Record], kind: str, *, file: str | None = None, on_bad: OnBad = "error"
) -> tuple[list[Row], Counter[str]]:
    """Records to rows of one kind, of `PARSERS`, and how many were dropped for which reason.

    Args:
      on_bad: "error" stops at a malformed record; "skip" counts it as dropped.

    Raises:
      InputError: a malformed record, an id that stands for two prompts, or no usable record at all.
    """
    rows, dropped, malformed = list[Row](), Counter[str](), Counter[str]()
    ids, sources = Ids.none(), 0
    for number, record in numbered(records):
        place = Place(file, number)
        try:
            row = PARSERS[kind](record, place)
            if record.get("prompt_id") is not None:
                ids.check(row.name, row.messages, "prompt", place)
            check_text(record, place)
            if row.values:
                sources = sources or len(row.values[0])
                scored_pairs.check_sources(len(row.values[0]), sources, kind, place)
        except InputError as error:
            if on_bad == "error":
                raise
            count_malformed(error, malformed)
            continue
        unused = unusable(row)
        if unused is None:
            rows.append(row)
        else:
            dropped[unused] += 1
    dropped += malformed
    if not rows:
        why = ", ".join(f"{reason}: {n}" for reason, n in dropped.items()) or "the file is empty"
        cure = "Give records that can be used" if dropped else "Give more data"
        spoken = "pair" if kind in scored_pairs.FIELDS else kind
        raise InputError(f"no usable {spoken} record is left ({why})", file=file, cure=cure)
    return rows, dropped


def count_malformed(error: InputError, malformed: Counter[str]) -> None:
    """Count what is left out for an error; the reasons are few."""
    reason = f"malformed: field '{error.field}' {error.problem}"
    malformed[reason if reason in malformed or len(malformed) < REASONS else "malformed: other reasons"] += 1
