"""KCA's stages 1 to 5 at a desk: what each instance needs to know, the exams on it, how the base model does in them.

Every stage is a file of the run, in whose lines the instances keep the ids of their sources. An instance that a stage
loses stays in all later files with the reason, so that sources = classes + losses.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fusion_jax.asking.contract import Answerer, Failure, Outcome, Question
from fusion_jax.asking.deferred import dismiss
from fusion_jax.data.chat import ChatSettings
from fusion_jax.data.examples import TextSettings
from fusion_jax.data.records import OnBad
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.jsonl import Record
from fusion_jax.kca import parsers, prompts
from fusion_jax.kca.calibrate import REFUSAL, Strategy, Where
from fusion_jax.kca.exam import ExamSettings, Sat, sit
from fusion_jax.kca.papers import Paper
from fusion_jax.kca.partition import Passed, agreement, classified, passed
from fusion_jax.kca.ready import Ready
from fusion_jax.kca.records import (
    NEED,
    NO_QUESTION,
    Instance,
    as_record,
    instance_in,
    read_instances,
)  # fmt: skip
from fusion_jax.kca.template import TemplateName
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Files, ModelPath
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.helpers import HelperSettings, replies
from fusion_jax.runs.page import SeededSettings
from fusion_jax.sampling.ids import decoding_mesh
from fusion_jax.settings import bounded
from fusion_jax.train.settings import TrainSettings
from fusion_jax.zoo.facts import WorldSettings

Side = Literal["train", "test"]
COUNTED = "counted"


@dataclass(frozen=True)
class MiniatureSettings:
    """The base model that is raised in the run where no other is given."""

    width: int = 96
    """Numbers of its hidden states."""
    layers: int = 3
    """Its layers."""
    papers: int = 76800
    """Texts of its pretraining: pages of sentences and chats, examination papers and exercises."""
    items: int = 1
    """Questions on a paper; a page has twice as many sentences."""
    raising: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        bounded(self, "width", least=32)
        bounded(self, "layers", "papers", "items", least=1)


@dataclass(frozen=True)
class KnowingSettings(EvaluatedSettings, SeededSettings):
    """Instructions, a base model, who helps and judges, and how it all is done."""

    base: ModelPath = ""
    """Base model that sits the exam and is trained: a Hugging Face folder; without, a miniature of an invented
    world."""
    instructions: File = ""
    """Training instances {"input", "output"}, or behind some of the stages; without, the world's."""
    exams: File = ""
    """Ready exams, verdicts or partitions of the same instances (the published files, or lines of this project's
    stages)."""
    tests: Files = ()
    """Test instances, one file a set; "output" is the reference, if there is one. Without, the world's."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    helper: HelperSettings = HelperSettings()
    judge: HelperSettings = HelperSettings()
    again: bool = False
    """Whether the helper makes a second exam of every note, to tell how many instances keep their class; its
    temperature has to be more than 0."""
    compat: bool = False
    """Whether replies are asked for and read as by the published program, with what it rejects."""
    response_shown: bool = True
    """Whether the helper sees the response when it writes the knowledge, as published."""
    exam: ExamSettings = ExamSettings()
    arms: tuple[Strategy, ...] = ("standard", "openbook", "discard", "random", "refusal")
    """What is trained and compared: the strategies openbook, discard and refusal; standard, on all instances;
    surviving, on those that have a class; random, without as many as discard leaves out; unknown, on the unknown ones
    alone."""
    result: Strategy = "discard"
    """Which of the arms becomes model/."""
    refusal: str = REFUSAL
    """The sentence that answers unknown instances of the refusal strategy, and is looked for in answers."""
    knowledge_where: Where = "before"
    """Whether the open-book strategy puts the knowledge before the instruction, as published, or behind it."""
    template: TemplateName = "vicuna"
    """Chat template of training and answers: Vicuna's, as published, or the model's own."""
    text: TextSettings = TextSettings(ChatSettings(header="prompt"), TokeniseSettings(eos="if_missing"))
    train: TrainSettings = TrainSettings()
    max_new_tokens: int = 1024
    """Longest answer to a test question, in tokens."""
    answer_batch: int = 32
    """Test questions that are answered at once, over all devices."""
    helpfulness: bool = False
    """Whether the judge also grades how helpful answers are."""
    rouge: bool = False
    """Whether answers are compared with references by ROUGE, which needs the package rouge-score."""
    world: WorldSettings = WorldSettings()
    miniature: MiniatureSettings = MiniatureSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "max_new_tokens", "answer_batch", least=1)
        if not self.refusal.strip():
            raise InputError("is blank", field="refusal", cure="Give a sentence")


@dataclass(frozen=True)
class HelperStage:
    """A stage that asks the helper. name: of its file, the stage's number first; open_to: whether it asks about an
    instance; question: what it asks; told: what a reply makes of the instance, with counts of what was dropped; sample:
    another number is another reply."""

    name: str
    open_to: Callable[[Instance], bool]
    question: Callable[[Instance], Question]
    told: Callable[[Instance, str, Counter[str]], Instance]
    sample: int = 0


@dataclass(frozen=True)
class Knowing:
    """Stages 1 to 5. paper: of the exam; helper: who writes; sat: answers in the exam, by set."""

    desk: Desk
    settings: KnowingSettings
    paper: Paper
    helper: Answerer | None
    sat: dict[str, list[list[Sat | None]]] = field(default_factory=dict)

    def required(self, name: str, instances: Sequence[Instance]) -> list[Instance]:
        """Stage 1: which instructions need facts."""
        read = parsers.compat_need if self.settings.compat else parsers.read_need

        def told(one: Instance, said: str, counts: Counter[str]) -> Instance:
            need = read(said)
            return dataclasses.replace(one, need=need, lost=need.lost)

        def question(one: Instance) -> Question:
            return prompts.need_question(one.source.instruction, self.settings.compat)

        return self._behind(
            HelperStage("1-requirement", lambda one: not one.need.label, question, told), name, instances
        )

    def informed(self, name: str, instances: Sequence[Instance]) -> list[Instance]:
        """Stage 2: the knowledge behind those that do."""

        def told(one: Instance, said: str, counts: Counter[str]) -> Instance:
            return dataclasses.replace(one, knowledge=said.strip(), lost="" if said.strip() else "stage 2: blank reply")

        def question(one: Instance) -> Question:
            source, shown = one.source, self.settings.response_shown and bool(one.source.response)
            return prompts.knowledge_question(source.instruction, source.response, one.need, response_shown=shown)

        stage = HelperStage("2-knowledge", lambda one: _unexamined(one) and not one.knowledge, question, told)
        return self._behind(stage, name, instances)

    def questioned(self, name: str, instances: Sequence[Instance], sample: int = 0) -> list[Instance]:
        """Stage 3: questions on the knowledge."""
        most, compat = self.settings.exam.questions, self.settings.compat

        def told(one: Instance, said: str, counts: Counter[str]) -> Instance:
            tests = parsers.compat_exam(said)[:most] if compat else parsers.read_exam(said, counts, most)
            return dataclasses.replace(one, tests=tuple(tests), lost="" if tests else NO_QUESTION)

        def question(one: Instance) -> Question:
            return prompts.exam_question(one.knowledge, most, compat)

        found = self._behind(HelperStage("3-exam", _unexamined, question, told, sample), name, instances)
        return [dataclasses.replace(one, tests=one.tests[:most]) for one in found]

    def questioned_again(self, name: str, questioned: Sequence[Instance]) -> list[Instance]:
        """Stage 3 once more, of the instances behind it whose note there is."""
        fresh = [dataclasses.replace(one, tests=()) for one in questioned if _needs(one) and one.knowledge]
        return self.questioned(f"{name}-again", fresh, 1)

    def dismiss(self) -> None:
        """Let a helper go that is a model of ours: behind stage 3 nothing more is asked."""
        dismiss(self.helper)

    def agreement(self, name: str, model: Model, again: Sequence[Instance], first: Sequence[Instance]) -> float:
        """Share of the instances that get the same class with a second exam. again: those behind it."""
        return agreement(first, self.examined(f"{name}-again", model, again))

    def examined(self, name: str, model: Model, instances: Sequence[Instance]) -> list[Instance]:
        """Stages 4 and 5: the base model sits the exam, and every instance gets its class."""
        s = self.settings.exam
        asked = [one.tests if _needs(one) and not one.label else () for one in instances]
        flat, file = [test for tests in asked for test in tests], f"{name}/4-partition.jsonl"

        def made() -> list[Record]:
            with self.desk.run.phase("examining"):
                mesh = decoding_mesh(model.config)
                found, cut = sit(model, flat, self.paper, s, mesh=mesh, progress=lambda done: self._beat(done, flat))
            answers, lines = iter(found), list[Record]()
            for one, tests in zip(instances, asked, strict=True):
                sat = [next(answers) for _ in tests]
                told = [None if a is None else {"correct": a.correct, "logprobs": list(a.logprobs)} for a in sat]
                lines.append({**as_record(classified(one, sat, s.threshold)), "sat": told, COUNTED: {}})
            if lines:
                lines[0][COUNTED] = dict(cut)
            return lines

        records = self._made(file, made)
        found = self._read(file, records)
        self.sat[name] = [[_sat(one) for one in record["sat"]] or [None] * len(instance.tests)
                          for record, instance in zip(records, found, strict=True)]  # fmt: skip
        self.desk.counter(f"{name}, classes").update(one.label or f"lost: {one.lost}" for one in found)
        return found

    def passed(self, name: str, instances: Sequence[Instance]) -> Passed:
        """A set's partition in numbers, which the log tells."""
        found = passed(instances, self.sat[name], self.settings.exam.threshold)
        told = ", ".join(f"{count} {what}" for what, count in found.sizes.items())
        shares = f"{100 * found.rate:.1f} % of {found.examined} examined pass ({100 * found.chance:.1f} by guessing)"
        self.desk.run.log(f"{name}: {told}" + (f"; {shares}" if found.examined else ""))
        return found

    def _beat(self, done: int, flat: Sequence[object]) -> None:
        self.desk.run.heartbeat("questions of the exam", done, len(flat))

    def _behind(self, stage: HelperStage, name: str, instances: Sequence[Instance]) -> list[Instance]:
        """A set's instances behind a stage; those that are not open to it stay as they are."""
        file = f"{name}/{stage.name}.jsonl"

        def made() -> list[Record]:
            mine = [number for number, one in enumerate(instances) if _alive(one) and stage.open_to(one)]
            out, counts = list(instances), [Counter[str]() for _ in instances]
            outcomes = self._asked(stage, [stage.question(out[number]) for number in mine], name)
            for number, outcome in zip(mine, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    out[number] = dataclasses.replace(out[number], lost=f"stage {stage.name[0]}: no reply")
                    counts[number][f"no reply: {outcome.reason}"] += 1
                else:
                    out[number] = stage.told(out[number], outcome.text, counts[number])
            return [{**as_record(one), COUNTED: dict(+own)} for one, own in zip(out, counts, strict=True)]

        return self._read(file, self._made(file, made))

    def _made(self, file: str, make: Callable[[], list[Record]]) -> list[Record]:
        """A file of the run, and its counts, which stand in its lines, so that a run that goes on has them, too."""
        records = self.desk.records(file, make)
        for record in records:
            self.desk.counter(file.removesuffix(".jsonl")).update(record[COUNTED])
        return records

    def _asked(self, stage: HelperStage, questions: Sequence[Question], name: str) -> list[Outcome]:
        if not questions:
            return []
        assert self.helper is not None  # `check_helped` has looked
        s, what = self.settings, f"{name}, {stage.name}"
        return replies(
            self.desk, self.helper, questions, s.helper.decoding, what, sample=stage.sample, patience=s.hosts.patience
        )

    def _read(self, file: str, records: Sequence[Record]) -> list[Instance]:
        path = self.desk.run.file(file)
        return [instance_in(Fields(record, path, number), False) for number, record in enumerate(records, 1)]


def check_helped(s: KnowingSettings, sides: Mapping[str, Sequence[Instance]]) -> None:
    """Refuse instances that a helper is to be asked about, where there is none.

    Raises:
      InputError: names every set that has such instances.
    """
    counts = {name: sum(_alive(one) and (not one.need.label or _unexamined(one)) for one in some)
              for name, some in sides.items()}  # fmt: skip
    told = ", ".join(f"{count} of {name}" for name, count in counts.items() if count)
    if told and not s.helper.given:
        raise InputError(
            f"there is none, and instances are to be asked about: {told}", field="--helper",
            cure="Give --helper.model or --helper.server, or records behind stage 3: --exams to train on, and --tests",
        )  # fmt: skip


def _alive(one: Instance) -> bool:
    """Whether stages go on with an instance."""
    return not one.lost and not one.label


def _needs(one: Instance) -> bool:
    return _alive(one) and one.need.label == NEED


def _unexamined(one: Instance) -> bool:
    return _needs(one) and not one.tests


def _sat(record: Record | None) -> Sat | None:
    return None if record is None else Sat(tuple(record["logprobs"]), record["correct"])


def read_side(s: KnowingSettings, desk: Desk, files: Sequence[str], side: Side) -> dict[str, list[Instance]]:
    """The user's instances of one side by set; training ones joined with their ready records."""
    out: dict[str, list[Instance]] = {}
    for file in files:
        name = side if side == "train" else f"test-{_stem(file)}"
        if name in out:
            raise InputError(f"two files are called '{_stem(file)}'", field="tests", cure="Rename one of them")
        out[name] = read_instances(file, s.on_bad, desk.counter(f"{name}, file"), answered=side == "train")
    if side == "train" and s.exams:
        ready = Ready(s.exams, s.exam.threshold, s.on_bad)
        out["train"] = ready.joined(out.get("train"), desk.counter("ready records"))
    return out


def _stem(file: str) -> str:
    return file.rstrip("/").rpartition("/")[2].partition(".")[0] or "set"
