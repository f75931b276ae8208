"""Models' answers as they are judged: the questions' turns, what a model said in each, and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
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
        fields = Fields(record, file, number, cure=CURE)
        key = key_of(fields)
        if key is None:
            raise fields.wrong("question_id", "is missing", "Give each question one")
        if key in out:
            raise fields.wrong("question_id", f"{key} stands twice", "Remove one")
        _turns(fields)
        out[key] = record
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


def difficulties_of(records: Sequence[Record], *, file: str | None = None) -> dict[str, float]:
    """Difficulties of questions by their keys.

    Raises:
      InputError: a record without the id of a question, or whose difficulty is no number.
    """
    out: dict[str, float] = {}
    for number, record in numbered(records):
        fields = Fields(record, file, number, cure='Write {"question_id", "difficulty"}')
        key = key_of(fields)
        if key is None:
            raise fields.wrong("question_id", "is missing")
        out[key] = fields.number("difficulty")
    return out


def key_of(fields: Fields) -> str | None:
    """The id that a record gives its question, a text or a whole number; None where it gives none."""
    for name in ("question_id", "prompt_id"):
        value = fields.values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise fields.wrong(name, f"is {quoted(value)}, not a text or a whole number")
        return str(value)
    return None


def _answered(record: Record, questions: Mapping[str, Record], file: str | None, number: int) -> Answered:
    fields = Fields(record, file, number, cure=CURE)
    key = key_of(fields)
    question = Fields(questions.get(key or "", {}), file, number, cure="Repair the file of --questions")
    turns: tuple[str, ...]
    said: tuple[str, ...]
    if "prompt" in record and "response" in record:
        turns, said = _turns(fields, "prompt"), (fields.text("response"),)
    elif "responses" in record:
        turns, said = _turns(fields), _texts(fields, "responses")
    elif "choices" in record:
        if not question.values:
            problem = f"question {key} is not among the questions"
            raise fields.wrong("question_id", problem, "Give its file by --questions")
        choices = fields.items("choices")
        if not choices or not isinstance(choices[0], dict):
            raise fields.wrong("choices", "holds no answer")
        own = Fields(choices[0], file, number, "choices[0]", CURE)
        turns, said = _turns(question), _texts(own, "turns")
    else:
        raise InputError("is no answer", file=file, record=number, cure=CURE)
    sources = ((fields, "reference"), (fields, "answer"), (question, "reference"))
    given = next(((of, name) for of, name in sources if of.values.get(name) is not None), None)
    references = () if given is None else _references(*given)
    category = fields.text("category", "") or question.text("category", "") or fields.text("skill", "")
    return Answered(key if key is not None else "\n".join(turns), turns, said, references, category)


def _turns(fields: Fields, name: str = "turns") -> tuple[str, ...]:
    """What was asked, none of it blank."""
    turns: tuple[str, ...] = (fields.text(name),) if name == "prompt" else _texts(fields, name)
    if not all(text.strip() for text in turns):
        raise fields.wrong(name, "is blank")
    return turns


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of texts."""
    texts = fields.items(name)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise fields.wrong(name, "is not a list of texts")
    return tuple(texts)


def _references(fields: Fields, name: str) -> tuple[str, ...]:
    """Right answers: one as a text, or a list with one for each turn."""
    value = fields.values[name]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.wrong(name, f"is {quoted(value)}, not a text or a list of texts")
    return tuple(texts)


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
