"""KCA's stages 6 to 8 at a desk: the strategies' training sets, the models that learn from them, and how they
answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fusion_jax.asking.contract import Answerer, Failure, Outcome, Question
from fusion_jax.asking.deferred import dismiss
from fusion_jax.errors import InputError
from fusion_jax.evals.hallucination.accounting import Account, Judged, account
from fusion_jax.evals.hallucination.overlap import rouge
from fusion_jax.evals.hallucination.refusals import Refusal, compat_refused, refusal
from fusion_jax.jsonl import Record
from fusion_jax.kca import parsers, prompts
from fusion_jax.kca.calibrate import Strategy, Treatment, training_rows
from fusion_jax.kca.records import Instance
from fusion_jax.kca.template import fitting
from fusion_jax.models.folder import Model
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.helpers import replies
from fusion_jax.runs.knowing import KnowingSettings
from fusion_jax.sampling.generate import generate
from fusion_jax.sampling.ids import decoding_mesh
from fusion_jax.train import objectives

STANDARD = "standard"


@dataclass(frozen=True)
class Answer:
    """What a model says to one test instance. refusal: how it refuses, if it does; hallucinated, helpfulness: the
    judge's, None where there is none; unread, ungraded: why a verdict or a grade could not be read."""

    instance: Instance
    text: str
    refusal: Refusal
    hallucinated: bool | None = None
    helpfulness: float | None = None
    unread: str = ""
    ungraded: str = ""

    @property
    def refused(self) -> bool:
        """Whether it counts as refused; what only nearly refuses is judged as an answer."""
        return self.refusal == "refused"


@dataclass(frozen=True)
class Calibrating:
    """Stages 6 to 8. base: with its template; judge: who grades; sets: test instances with their classes by set;
    answers: arm -> set -> answers."""

    desk: Desk
    settings: KnowingSettings
    base: Model
    judge: Answerer | None
    sets: Mapping[str, Sequence[Instance]]
    answers: dict[str, dict[str, list[Answer]]] = field(default_factory=dict)

    @cached_property
    def sentence(self) -> str:
        """The sentence that refuses, as the base model's tokenizer writes it."""
        tokenizer = self.base.tokenizer
        assert tokenizer is not None  # `with_template` has looked
        written: str = tokenizer.decode(tokenizer(self.settings.refusal, add_special_tokens=False)["input_ids"])
        return written

    def trained(self, arm: Strategy, instances: Sequence[Instance]) -> Model:
        """The base model, tuned on an arm's training set."""
        s = self.settings
        assert self.base.tokenizer is not None  # `with_template` has looked
        room = fitting(self.base.tokenizer, s.text.chat, s.text.tokens.max_length)
        rows, counts = training_rows(instances, arm, Treatment(s.refusal, s.knowledge_where, room, self.desk.seed))
        self.desk.counter(f"{arm}, rows").update(counts)
        if not rows:
            cure = "Look at the classes in the report, or leave the arm out"
            raise InputError(f"'{arm}' has nothing to train on", field="--arms", cure=cure)
        stage = Stage(f"arms/{arm}", "--train", s.train, s.text, leaf=True)
        return self.desk.train(stage, self.base, objectives.sft(), rows)

    def answer(self, arm: str, model: Model) -> None:
        """A model's greedy answers to the bare instructions of every test set, judged. A judge that is a model of ours
        goes before the next arm is trained."""
        self.answers[arm] = {
            name: self._judged(f"answers/{arm}/{name}.jsonl", arm, model, instances)
            for name, instances in self.sets.items()
        }
        dismiss(self.judge)

    def accounts(self, name: str) -> dict[str, Account]:
        """Every arm's figures (a) to (d) on one set, beside the standard model."""
        judged = {arm: [judged_of(one) for one in found[name]] for arm, found in self.answers.items()}
        other = judged.get(STANDARD, [])
        return {arm: account(own, other) for arm, own in judged.items()}

    def overlap(self, name: str) -> dict[str, dict[str, float]]:
        """ROUGE of every arm's answers that do not refuse, over the instances with a reference."""
        out = {}
        for arm, found in self.answers.items():
            some = [one for one in found[name] if not one.refused and one.instance.source.response]
            out[arm] = rouge([one.text for one in some], [one.instance.source.response for one in some])
        return out

    def _judged(self, file: str, arm: str, model: Model, instances: Sequence[Instance]) -> list[Answer]:

        def written() -> list[Record]:
            with self.desk.run.phase("answering"):
                texts = self._texts(model, instances)
            return [{"id": one.id, "answer": text} for one, text in zip(instances, texts, strict=True)]

        records = self.desk.run.stage(file, written, made_from=[f"arms/{arm}/model"], leaf=True)
        found = [self._read(one, record["answer"]) for one, record in zip(instances, records, strict=True)]
        verdicts = file.replace("answers/", "verdicts/")
        graded = self.desk.run.stage(verdicts, lambda: self._verdicts(found, verdicts), made_from=[file], leaf=True)
        own = self.desk.counter(verdicts.removesuffix(".jsonl"))
        out = []
        for one, record in zip(found, graded, strict=True):
            judged = dataclasses.replace(one, **record)
            own[f"unread: {judged.unread}"] += bool(judged.unread)
            own[f"ungraded: {judged.ungraded}"] += bool(judged.ungraded)
            own[f"refusal: {judged.refusal}"] += judged.refusal != "no"
            out.append(judged)
        return out

    def _texts(self, model: Model, instances: Sequence[Instance]) -> list[str]:
        asked = [one.source.instruction for one in instances]
        found = generate(
            model, asked, max_new_tokens=self.settings.max_new_tokens, batch_size=self.settings.answer_batch,
            mesh=decoding_mesh(model.config),
            progress=lambda done: self.desk.run.heartbeat("answers", done, len(asked)),
        )  # fmt: skip
        return [text for (text,) in found]

    def _read(self, one: Instance, text: str) -> Answer:
        s = self.settings
        if s.compat:
            return Answer(one, text, "refused" if compat_refused(text, self.sentence) else "no")
        return Answer(one, text, refusal(text, s.refusal))

    def _verdicts(self, answers: Sequence[Answer], file: str) -> list[Record]:
        """What the judge says of answers; refusals are judged for helpfulness alone."""
        nothing = {"hallucinated": None, "helpfulness": None, "unread": "", "ungraded": ""}
        out: list[Record] = [dict(nothing) for _ in answers]
        if self.judge is None:
            return out
        compat = self.settings.compat
        mine = [number for number, one in enumerate(answers) if not one.refused]
        asked = [answers[number] for number in mine]
        questions = [
            prompts.judge_question(a.instance.source.instruction, a.instance.need, a.instance.knowledge, a.text, compat)
            for a in asked
        ]
        for number, outcome in zip(mine, self._asked(questions, file), strict=True):
            out[number].update(verdict_of(outcome, compat))
        if self.settings.helpfulness:
            questions = [prompts.helpfulness_question(a.instance.source.instruction, a.text, compat) for a in answers]
            for record, outcome in zip(out, self._asked(questions, f"{file}, helpfulness"), strict=True):
                record.update(grade_of(outcome, compat))
        return out

    def _asked(self, questions: Sequence[Question], what: str) -> list[Outcome]:
        assert self.judge is not None
        s = self.settings
        return replies(self.desk, self.judge, questions, s.judge.decoding, what, patience=s.hosts.patience)


def verdict_of(outcome: Outcome, compat: bool) -> Record:
    """The fields of a verdict. compat: any score but 0 is a hallucination, and so is what cannot be read."""
    if isinstance(outcome, Failure):
        return {"hallucinated": None, "unread": f"no reply: {outcome.reason}"}
    if not compat:
        verdict = parsers.read_verdict(outcome.text)
        return {"hallucinated": verdict.hallucinated, "unread": verdict.unread}
    try:
        score = parsers.compat_verdict(outcome.text)
    except ValueError:
        return {"hallucinated": None, "unread": "judge: the published parser stops here"}
    return {"hallucinated": None if score is None else score > 0, "unread": "judge: empty" if score is None else ""}


def grade_of(outcome: Outcome, compat: bool) -> Record:
    """The fields of a grade of helpfulness."""
    if isinstance(outcome, Failure):
        return {"helpfulness": None, "ungraded": f"no reply: {outcome.reason}"}
    found = parsers.compat_helpfulness(outcome.text) if compat else parsers.read_helpfulness(outcome.text)
    return {"helpfulness": found.score, "ungraded": found.unread}


def judged_of(one: Answer) -> Judged:
    """An answer as it is counted."""
    return Judged(one.instance.id, one.instance.label, one.refused, one.hallucinated)
