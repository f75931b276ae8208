"""Instances and the questions on them, and the files in which they are found.

An instance keeps the id that it has in its source through every stage; one without an id is called by the place of its
record. Files may be this project's own or the published program's, whose stages nest the records of those before under
"original_input" and spell "queries" as "queris".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad
from fusion_jax.display import brief
from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.jsonl import Record, numbered

LETTERS = "ABCD"
NEED, NO_NEED = "need", "no_need"
NO_FACT, KNOWN, UNKNOWN = "no_need_fact", "need_and_have_fact", "need_and_have_no_fact"
CLASSES = (NO_FACT, KNOWN, UNKNOWN)
NO_QUESTION, NO_LABEL = "no valid question", "no label"
CURE = "Correct or remove the record"


class ExamItem(NamedTuple):
    """A question with four options. answer: the letter of the right one."""

    question: str
    options: tuple[str, ...]
    answer: str
    analysis: str = ""


class Source(NamedTuple):
    """An instruction and the response that is learnt from it; of a test set, the reference answer."""

    id: str
    instruction: str
    response: str


class Need(NamedTuple):
    """What stage 1 says of an instance. label: "need", "no_need", or "" where it says nothing yet, or nothing that
    could be read, which `lost` then tells."""

    label: str
    analysis: str = ""
    queries: tuple[str, ...] = ()
    lost: str = ""


@dataclass(frozen=True)
class Instance:
    """An instance behind the stages that it has gone through. need: of stage 1; knowledge: of stage 2; tests: the valid
    questions of stage 3. lost: why it is in no class, "" as long as it may be in one. label: its class."""

    source: Source
    need: Need = Need("")
    knowledge: str = ""
    tests: tuple[ExamItem, ...] = ()
    lost: str = ""
    label: str = ""

    def __repr__(self) -> str:
        return brief(self)

    @property
    def id(self) -> str:
        return self.source.id


def check_item(test: ExamItem) -> str:
    """Why a question is no exam question, "" for one that is.

    >>> check_item(ExamItem("Which is a colour?", ("red", "two", "red", "ten"), "A"))
    'options alike'
    """
    if not test.question.strip():
        return "blank question"
    if len(test.options) != len(LETTERS):
        return "not four options"
    if not all(option.strip() for option in test.options):
        return "blank option"
    if len({" ".join(option.split()).casefold() for option in test.options}) < len(LETTERS):
        return "options alike"
    return "" if test.answer in tuple(LETTERS) else "answer is none of A to D"


def read_instances(file: str, on_bad: OnBad, counts: Counter[str], *, answered: bool = True) -> list[Instance]:
    """The instances of a file, behind whatever stages its records have gone through: sources {"input", "output"},
    {"instruction", "response"} or {"prompt", "response"}, lines of this project's stages and of the published ones, and
    the published training items {"id", "conversations", "class", "analysis", "knowledge"}, whose human turn may begin
    with the knowledge. An "id" or "prompt_id" is kept.

    Questions that are none are left out and counted.

    Args:
      answered: whether every record has to have a response, as those that are trained on.

    Raises:
      InputError: no usable record, an id that stands twice or, where `on_bad` is "error", a broken record.
    """
    return instances_in(load_records(file), file, on_bad, counts, answered)


def instances_in(
    records: Sequence[Record], file: str, on_bad: OnBad, counts: Counter[str], answered: bool = True
) -> list[Instance]:
    """`read_instances` of records that were loaded."""
    out = list[Instance]()
    for number, record in numbered(records):
        try:
            out.append(instance_of(Fields(record, file, number, cure=CURE), counts, answered))
        except InputError as error:
            if on_bad == "error":
                raise
            counts[f"broken record: field '{error.field}'"] += 1
    if not out:
        raise InputError("holds no usable record", file=file, cure="Give at least one")
    check_ids([one.id for one in out], file)
    return out


def source_of(fields: Fields, answered: bool) -> Source:
    """The source in a record. answered: whether it has to have a response."""
    ids = [fields.values[name] for name in ("id", "prompt_id") if fields.values.get(name) is not None]
    identity = ids[0] if ids else fields.record
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
        raise fields.wrong("id", f"is {quoted(identity)}, neither text nor a whole number")
    instruction = _text(fields, ("input", "instruction", "prompt"), needed=True)
    names = ("output", "response", "answer")
    if not answered:
        fields = _last_of_references(fields, names)
    return Source(str(identity), instruction, _text(fields, names, needed=answered))


def _last_of_references(fields: Fields, names: Sequence[str]) -> Fields:
    """Of a list of reference answers, as MS MARCO has them, the last one, as published."""
    lists = {name: fields.values[name] for name in names if isinstance(fields.values.get(name), list)}
    return replace(fields, values={**fields.values, **{name: (found or [None])[-1] for name, found in lists.items()}})


def _text(fields: Fields, names: Sequence[str], *, needed: bool) -> str:
    """The text of the first of the names that a record has."""
    name = next((one for one in names if fields.values.get(one) is not None), None)
    if name is None:
        if needed:
            raise fields.wrong(names[0], f"is missing, and so are {' and '.join(names[1:])}")
        return ""
    text: str = fields.text(name)
    if needed and not text.strip():
        raise fields.wrong(name, "is blank")
    return text


def check_ids(ids: Sequence[str], file: str | None) -> None:
    """Refuse an id that stands twice: what the stages say of one of the two would be told of the other."""
    twice = next((one for one, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        cure = "Give each record an id of its own, or leave the ids out"
        raise InputError(f"{quoted(twice)} stands twice", file=file, field="id", cure=cure)


def instance_of(fields: Fields, counts: Counter[str], answered: bool = True) -> Instance:
    """The instance in a user's line of any stage, with its valid questions; the others are counted. answered: as in
    `read_instances`."""
    found = instance_in(fields, answered)
    reasons = [check_item(test) for test in found.tests]
    counts.update(f"question: {reason}" for reason in reasons if reason)
    valid = tuple(test for test, reason in zip(found.tests, reasons, strict=True) if not reason)
    none_left = bool(found.tests) and not valid and not found.label
    return replace(found, tests=valid, lost=found.lost or (NO_QUESTION if none_left else ""))


def instance_in(fields: Fields, answered: bool = True) -> Instance:
    """The instance in a line of any stage, with all its questions, as a stage has kept them."""
    flat = Fields(flattened(fields), fields.file, fields.record, cure=fields.cure)
    if "conversations" in flat.values:
        flat = Fields({**flat.values, **_turns(flat)}, fields.file, fields.record, cure=fields.cure)
    source, need = source_of(flat, answered), need_of(flat)
    tests = tuple(item_of(one, flat, number) for number, one in enumerate(flat.items("tests", [])))
    label = flat.choice("class", CLASSES, "")
    lost = "" if label else flat.text("lost", "") or need.lost
    return Instance(source, need, flat.text("knowledge", ""), tests, lost, label)


def flattened(fields: Fields) -> dict[str, Any]:
    """A line with the fields of the lines that it nests; its own come first."""
    values, inner = dict(fields.values), fields.values.get("original_input")
    depth = 0
    while inner is not None and depth < 8:
        if isinstance(inner, str):
            inner = {"input": inner}
        if not isinstance(inner, Mapping):
            raise fields.wrong("original_input", f"is {quoted(inner)}, not an object")
        values = {**inner, **{name: value for name, value in values.items() if name != "original_input"}}
        inner, depth = inner.get("original_input"), depth + 1
    return values


def need_of(fields: Fields) -> Need:
    """Stage 1 in a flat line: this project's "label", or the published "final_prediction"; a line with questions or
    knowledge and neither needs facts."""
    label, lost = fields.choice("label", (NEED, NO_NEED, ""), None), ""
    if label is None:
        said, known = fields.text("final_prediction", None), {"<need>": NEED, "<no need>": NO_NEED, "": "", None: ""}
        if said not in known:
            raise fields.wrong("final_prediction", f"is {quoted(said)}, neither <need> nor <no need>")
        label = known[said] or (NEED if fields.values.get("tests") or fields.values.get("knowledge") else "")
        lost = NO_LABEL if said == "" and not label else ""
    queries = fields.values.get("queries", fields.values.get("queris")) or []
    if isinstance(queries, str):
        queries = [one.strip() for one in queries.splitlines() if one.strip()]
    if not isinstance(queries, list) or not all(isinstance(one, str) for one in queries):
        raise fields.wrong("queries", f"is {quoted(queries)}, not a list of texts")
    return Need(label, fields.text("analysis", ""), tuple(queries), lost)


def item_of(value: Any, fields: Fields, number: int) -> ExamItem:
    """A question of a line's list "tests"."""
    place = f"tests[{number}]"
    if not isinstance(value, Mapping):
        raise fields.wrong(place, f"is {quoted(value)}, not an object")
    return item_in(Fields(value, fields.file, fields.record, fields.place(place), fields.cure))


def item_in(fields: Fields) -> ExamItem:
    """The question in an object."""
    options = fields.items("options")
    if not all(isinstance(one, str) for one in options):
        raise fields.wrong("options", "holds what is no text")
    answer = fields.text("answer").strip().strip("()").upper()
    return ExamItem(fields.text("question"), tuple(options), answer, fields.text("analysis", ""))


def as_record(instance: Instance) -> Record:
    """An instance as a line of this project, which `instance_in` reads."""
    source, need = instance.source, instance.need
    line: Record = {"id": source.id, "input": source.instruction, "output": source.response}
    line |= {"label": need.label, "analysis": need.analysis, "queries": list(need.queries)}
    if instance.knowledge:
        line["knowledge"] = instance.knowledge
    if instance.tests:
        line["tests"] = [{**test._asdict(), "options": list(test.options)} for test in instance.tests]
    if instance.lost:
        line["lost"] = instance.lost
    return line | ({"class": instance.label} if instance.label else {})


def _turns(fields: Fields) -> dict[str, str]:
    """Instruction and response of a published training item."""
    turns = fields.items("conversations")
    said = [(one.get("from"), one.get("value")) if isinstance(one, Mapping) else (None, None) for one in turns]
    if [who for who, _ in said] != ["human", "gpt"] or not all(isinstance(text, str) for _, text in said):
        raise fields.wrong("conversations", "is no single turn of human and gpt", "Split it, or keep its last turn")
    human, knowledge = str(said[0][1]), fields.text("knowledge", "")
    return {"input": human.removeprefix(f"{knowledge}\n") if knowledge else human, "output": str(said[1][1])}
