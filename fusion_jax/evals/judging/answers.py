"""Models' answers as they are judged: the questions' turns, what a model said in each, and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fusion_jax.errors import InputError, quoted
from fusion_jax.jsonl import Record, numbered

CURE = 'Write {"prompt", "response"}, {"turns", "responses"}, or {"question_id", "choices"} beside --questions'


class Answered(NamedTuple):
    """key: of the question, the same in all files; turns: what was asked; said: what was answered to each; references:
    right answers, one a turn, or none; category: of the question, or empty."""

    key: str
    turns: tuple[str, ...]
    said: tuple[str, ...]
    references: tuple[str, ...] = ()
    category: str = ""


def questions_of(records: Sequence[Record], *, file: str | None = None) -> dict[str, Record]:
    """Questions by their id, {"question_id", "turns", "category"?, "reference"?}, as MT-Bench publishes them.

    Raises:
      InputError: a question without an id or turns, or one whose id stands twice.
    """
    out: dict[str, Record] = {}
    for number, record in numbered(records):
        key = record.get("question_id")
        if not isinstance(key, str | int):
            raise InputError("is missing", file=file, record=number, field="question_id", cure="Give each question one")
        if str(key) in out:
            raise InputError(f"{key} stands twice", file=file, record=number, field="question_id", cure="Remove one")
        _texts(record, "turns", file, number)
        out[str(key)] = record
    return out


def answers_of(
    records: Sequence[Record], questions: Mapping[str, Record] = {}, *, file: str | None = None
) -> dict[str, Answered]:
    """A model's answers by the questions' keys, in the order of the file.

    Args:
      questions: of `questions_of`, for answers that name their question by its id only, and for references.

    Raises:
      InputError: an answer of no known form, without its question, to another number of turns, or given twice; none.
    """
    out: dict[str, Answered] = {}
    for number, record in numbered(records):
        one = _answered(record, questions, file, number)
        if one.key in out:
            raise InputError("answers a question a second time", file=file, record=number, cure="Remove one of the two")
        if len(one.turns) != len(one.said):
            problem = f"has {len(one.said)} answers to {len(one.turns)} turns"
            raise InputError(problem, file=file, record=number, cure="Give an answer to each turn")
        out[one.key] = one
    if not out:
        raise InputError("holds no answer", file=file, cure="Give at least one")
    return out


def _answered(record: Record, questions: Mapping[str, Record], file: str | None, number: int) -> Answered:
    key = record.get("question_id", record.get("prompt_id"))
    question = questions.get(str(key), {})
    turns: tuple[str, ...]
    said: tuple[str, ...]
    if isinstance(record.get("prompt"), str) and isinstance(record.get("response"), str):
        turns, said = (record["prompt"],), (record["response"],)
    elif "responses" in record:
        turns, said = _texts(record, "turns", file, number), _texts(record, "responses", file, number)
    elif isinstance(record.get("choices"), list) and record["choices"] and isinstance(record["choices"][0], dict):
        if not question:
            problem, cure = f"question {quoted(key)} is not among the questions", "Give its file by --questions"
            raise InputError(problem, file=file, record=number, field="question_id", cure=cure)
        turns, said = _texts(question, "turns", file, number), _texts(record["choices"][0], "turns", file, number)
    else:
        raise InputError("is no answer", file=file, record=number, cure=CURE)
    given = record.get("reference", record.get("answer", question.get("reference")))
    references = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else ()
    if not all(isinstance(one, str) for one in references):
        raise InputError("is not a list of texts", file=file, record=number, field="reference", cure="Give one a turn")
    category = record.get("category", question.get("category", record.get("skill", "")))
    return Answered(str(key) if key is not None else "\n".join(turns), turns, said, references, str(category or ""))


def _texts(record: Record, field: str, file: str | None, number: int) -> tuple[str, ...]:
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputError("is not a list of texts", file=file, record=number, field=field, cure=CURE)
    return tuple(value)


def shared_questions(models: Mapping[str, Mapping[str, Answered]]) -> list[str]:
    """Keys of the questions that all models answered, in the order of the first.

    Raises:
      InputError: there is none; one that stands for different turns.
    """
    first, *others = models.values()
    keys = [key for key in first if all(key in other for other in others)]
    if not keys:
        cure = "Give answers to the same questions"
        raise InputError("the files answer no question in common", field="answers", cure=cure)
    for key in keys:
        for name, other in models.items():
            if other[key].turns != first[key].turns:
                problem = f"question {quoted(key)} is another one in the answers of {name}"
                raise InputError(problem, field="answers", cure="Give each question an id of its own")
    return keys


def with_shared_references(models: Mapping[str, Mapping[str, Answered]]) -> dict[str, dict[str, Answered]]:
    """The same answers, each with its question's references and category: the first ones that a model's file gives."""
    references, categories = dict[str, tuple[str, ...]](), dict[str, str]()
    for own in models.values():
        for key, one in own.items():
            references[key] = references.get(key) or one.references
            categories[key] = categories.get(key) or one.category
    return {
        name: {key: one._replace(references=references[key], category=categories[key]) for key, one in own.items()}
        for name, own in models.items()
    }
