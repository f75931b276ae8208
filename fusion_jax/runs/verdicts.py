"""Answers judged as a run: who is compared, what the judge is asked, and its verdicts, which are kept as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.asking.contract import MOST_LOGPROBS, Answerer, Decoding, Failure, Outcome, Question
from fusion_jax.asking.given import Given
from fusion_jax.data.loaders import load_records
from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.judging.answers import (
    Answered,
    answers_of,
    difficulties_of,
    questions_of,
    shared_questions,
    with_shared_references,
)
from fusion_jax.evals.judging.verdicts import rule_pair, rule_score, verdict_of
from fusion_jax.evals.judging.wording import Style, Wording, grade_question, pair_question, wording_of
from fusion_jax.intervals import RESAMPLES
from fusion_jax.jsonl import Record
from fusion_jax.options import File, Files, ModelPath, Models, suggestion
from fusion_jax.rewards.verifiers import VerifierName, verifier
from fusion_jax.runs.asking import AskingSettings, made_again, outcomes_of
from fusion_jax.runs.checks import check_names, model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.sampling.generate import SampleSettings, load_to_sample
from fusion_jax.settings import bounded
from fusion_jax.zoo import model_path
from fusion_jax.zoo.problems import problems

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True)
class JudgeSettings(AskingSettings):
    """Who is compared, by whom, and how the judge is asked."""

    model: ModelPath = ""
    """Judge: a Hugging Face folder, a GGUF file, or zoo:NAME; without it and --server, the rule."""
    rule: VerifierName = "graded"
    """Rule that judges by right answers, where neither --model nor --server does."""
    style: Style = "alpaca"
    """Pairs by the judge's probabilities with length control (alpaca) or by five grades (arena); scores (mtbench)."""
    answers: Files = ()
    """A file of answers for each model, which is called as the file; without, miniatures answer the zoo's problems."""
    miniatures: Models = ("zoo:target", "zoo:qwen-source", "zoo:llama-source")
    """Models that answer the zoo's problems, without --answers."""
    per_skill: int = 6
    """The zoo's problems of each skill, without --answers."""
    questions: File = ""
    """Questions with "question_id" and "turns", for answers that name them by their id; MT-Bench's file is one."""
    baseline: str = ""
    """Model that the others are compared with; without, the first."""
    wording: File = ""
    """What the judge is asked, in your words (YAML); without, in this project's."""
    difficulty: File = ""
    """Difficulty of each question for the length control: records with "question_id" and "difficulty"."""
    both_orders: bool = True
    """Whether pairs are judged in both orders; else in one that is drawn. Five grades always are."""
    repeat: float = 0.25
    """Share of the questions that the judge is asked again, to see whether it agrees with itself."""
    temperature: float = 0.0
    """Temperature of the judge; 0 always takes the most probable token."""
    judge_tokens: int = 1024
    """Longest reply of the judge, but for pairs by probabilities, which need one token."""
    resamples: int = RESAMPLES
    """Draws of questions that intervals come from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "temperature", least=0)
        bounded(self, "repeat", least=0, most=1)
        bounded(self, "per_skill", "judge_tokens", "resamples", least=1)

    def check(self) -> None:
        """Refuse what does not go together, and wordings that cannot be used."""
        super().check()
        self.check_answerer(one=True)
        called = [Path(file).stem for file in self.answers] or [model_name(one) for one in self.miniatures]
        check_names(called, field="answers" if self.answers else "miniatures")
        if self.baseline and self.baseline not in called:
            problem = f"nobody is called '{self.baseline}'"
            raise InputError(problem, field="baseline", cure=suggestion(self.baseline, called))
        if len(called) < 2 and self.style != "mtbench":
            cure = "Give the answers of two or more"
            raise InputError("a single model cannot be compared", field="answers", cure=cure)
        wording_of(self.style, self.wording)
        if self.difficulty:
            difficulties_of(load_records(self.difficulty), file=self.difficulty)

    @property
    def by_rule(self) -> bool:
        """Whether no model judges."""
        return not self.model and not self.server

    @property
    def called(self) -> str:
        return f"the rule '{self.rule}'" if self.by_rule else super().called

    def decoding(self) -> Decoding:
        """How the judge replies; greedy replies are the same whatever the seed."""
        seed = self.seed if self.temperature else 0
        if self.style == "alpaca":
            return Decoding(1, self.temperature, seed=seed, top_logprobs=MOST_LOGPROBS)
        return Decoding(self.judge_tokens, self.temperature, seed=seed)


class Compared(NamedTuple):
    """Models' answers to the same questions; the baseline stands first. keys: of the questions; difficulty: of each
    question, where it is given."""

    keys: list[str]
    models: dict[str, dict[str, Answered]]
    difficulty: np.ndarray | None = None

    @property
    def baseline(self) -> str:
        return next(iter(self.models))


class Asked(NamedTuple):
    """What the judge is asked once. model: whose answer it is about. place: of pairs, where that answer stands, 0 or 1;
    of scores the turn. again: whether it was asked before."""

    model: str
    key: str
    place: int
    again: bool
    question: Question


def compared_of(s: JudgeSettings, desk: Desk) -> Compared:
    """The answers of the files or of the miniatures, to the questions that all answered."""
    known = questions_of(load_records(s.questions), file=s.questions) if s.questions else {}
    if s.answers:
        models = {Path(file).stem: answers_of(load_records(file), known, file=file) for file in s.answers}
    else:
        models = {model_name(one): answers_of(_of_miniature(s, desk, one)) for one in s.miniatures}
    models = with_shared_references(models)
    keys = shared_questions(models)
    for name, own in models.items():
        if left := len(own) - len(keys):
            desk.counter("answers")[f"{name}: question not answered by all"] += left
        desk.counter("answers")["used"] += len(keys)
    first = s.baseline or next(iter(models))
    if s.by_rule and not any(models[first][key].references for key in keys):
        cure = 'Give "answer" with each, or a judge by --model or --server'
        raise InputError("the rule needs right answers", field="rule", cure=cure)
    return Compared(keys, {first: models[first], **models}, _difficulty(s, keys))


def _difficulty(s: JudgeSettings, keys: Sequence[str]) -> np.ndarray | None:
    """Each question's difficulty, where they are given."""
    if not s.difficulty:
        return None
    given = difficulties_of(load_records(s.difficulty), file=s.difficulty)
    missing = next((key for key in keys if key not in given), None)
    if missing is not None:
        problem = f"question {quoted(missing)} has no difficulty"
        raise InputError(problem, file=s.difficulty, field="question_id", cure="Give one for each question")
    return np.asarray([given[key] for key in keys])


def _of_miniature(s: JudgeSettings, desk: Desk, model: str) -> list[Record]:
    """What a miniature answers to the zoo's problems, made once."""
    prompts = problems("skills", s.per_skill, split="test", seed=s.seed)
    how = SampleSettings(0.0, 1.0, num_samples=1, max_new_tokens=28, batch_size=s.batch_size)

    def answered() -> list[Record]:
        return desk.sampled(load_to_sample(model_path(model)), model_name(model), prompts, how)

    return desk.records(f"answers/{model_name(model)}.jsonl", answered, made_from=[])


def asked_of(s: JudgeSettings, compared: Compared, wording: Wording) -> list[Asked]:
    """Everything that the judge is asked: each question of each model in its order or orders, or turns; then the share
    that is asked again."""
    rng = np.random.default_rng(s.seed)
    drawn = rng.integers(0, 2, len(compared.keys))
    repeated = set(rng.permutation(len(compared.keys))[: round(s.repeat * len(compared.keys))].tolist())
    out = list[Asked]()
    for name, own in compared.models.items():
        if name == compared.baseline and s.style != "mtbench":
            continue
        for number, key in enumerate(compared.keys):
            if s.style == "mtbench":
                places = list(range(len(own[key].turns)))
            else:
                places = [0, 1] if s.both_orders or s.style == "arena" else [int(drawn[number])]
            out += [Asked(name, key, at, False, _question(s.style, wording, compared, name, key, at)) for at in places]
    chosen = {compared.keys[number] for number in repeated}
    return out + [one._replace(again=True) for one in out if one.key in chosen and not _second(s, one)]


def _second(s: JudgeSettings, one: Asked) -> bool:
    """Of pairs in both orders only one is asked again."""
    return s.style != "mtbench" and (s.both_orders or s.style == "arena") and one.place == 1


def _question(style: Style, wording: Wording, compared: Compared, name: str, key: str, place: int) -> Question:
    own = compared.models[name][key]
    if style == "mtbench":
        return grade_question(wording, own, place)
    other = compared.models[compared.baseline][key]
    return pair_question(wording, own, *((own, other) if place == 0 else (other, own)))


def judge_of(s: JudgeSettings, desk: Desk, compared: Compared, asked: Sequence[Asked]) -> Answerer:
    """Who judges: a server, a model of ours, or the rule, which knows the right answers."""
    if not s.by_rule:
        return s.answerer(desk)
    verify, known = verifier(s.rule, "rule"), dict[str, Outcome]()
    for one in asked:
        own, other = (compared.models[name][one.key] for name in (one.model, compared.baseline))
        if s.style == "mtbench":
            verdict = rule_score(verify, own, one.place)
        else:
            verdict = rule_pair(s.style, verify, *((own, other) if one.place == 0 else (other, own)))
        if known.setdefault(one.question.digest, verdict) != verdict:
            problem = f"question {quoted(one.key)} stands twice, with other right answers"
            raise InputError(problem, field="answers", cure="Remove one of the two")
    return Given(f"rule {s.rule}", lambda question: known[question.digest])


def verdicts_of(s: JudgeSettings, desk: Desk, compared: Compared, asked: Sequence[Asked]) -> list[Record]:
    """The judge's verdicts, made once unless what failed is to be asked again; counted by what came of them."""
    if s.failed_again:
        made_again(desk, VERDICTS)
    records = desk.records(VERDICTS, lambda: judged(s, desk, asked, judge_of(s, desk, compared, asked)), made_from=[])
    desk.counter("verdicts").update(one["reason"] or "used" for one in records)
    return records


def judged(s: JudgeSettings, desk: Desk, asked: Sequence[Asked], judge: Answerer) -> list[Record]:
    """The judge's verdict on everything, a record each: {"model", "question_id", "place", "again", "verdict", "reason",
    "detail", "reply"}; a question asked again is another sample, with another seed."""
    how = s.decoding()
    other = dataclasses.replace(how, seed=how.seed + 1)
    outcomes = dict[int, Outcome]()
    for again, decoding in ((False, how), (True, other)):
        numbers = [number for number, one in enumerate(asked) if one.again == again]
        found = outcomes_of(s, desk, judge, [asked[n].question for n in numbers], decoding, "verdicts")
        outcomes |= dict(zip(numbers, found, strict=True))
    records = list[Record]()
    for number, one in enumerate(asked):
        outcome = outcomes[number]
        verdict = verdict_of(s.style, outcome)
        failed = verdict if isinstance(verdict, Failure) else Failure("")
        records.append({
            "model": one.model, "question_id": one.key, "place": one.place, "again": one.again,
            "verdict": None if isinstance(verdict, Failure) else verdict, "reason": failed.reason,
            "detail": failed.detail, "reply": "" if isinstance(outcome, Failure) else outcome.text,
        })  # fmt: skip
    return records
