"""MK-TOD at a desk: data, the two models before they meet, their joint training, and what is measured of a system.

Sections 1 to 7 of the specification (arXiv 2310.08877).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fusion_jax.data.batches import Data, bucket_list
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad
from fusion_jax.dialogue.inputs import Inputs, Lengths
from fusion_jax.dialogue.knowledge import Knowledge, knowledge_of
from fusion_jax.dialogue.sets import DataSet
from fusion_jax.dialogue.systems import System, as_generator, as_retriever
from fusion_jax.dialogue.turns import Turn, turns_of
from fusion_jax.errors import InputError
from fusion_jax.evals.dialogue.recall import Recall, recall_at
from fusion_jax.evals.dialogue.scoring import Scored, score
from fusion_jax.hosts.agree import on_first
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import load, save
from fusion_jax.models.parameters import place_params
from fusion_jax.options import File, ModelPath
from fusion_jax.plan.parts import Aligning, Part, Sampling
from fusion_jax.runs.answering import Answered, Answering, answering, knowledge_arrays
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.dialogue_data import (
    DialogueFiles,
    Dialogues,
    check_files,
    miniature_files,
    miniature_system,
    named,
    raising_towns,
    read_dialogues,
    shown,
)
from fusion_jax.runs.page import SeededSettings
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.sharding import placed
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.mktod import MktodSettings, mktod, retriever_pretraining
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path

ArmName = Literal[
    "full", "no-mml", "no-negative", "no-order", "no-confidence", "no-cooccurrence", "only-order", "only-confidence",
    "only-cooccurrence", "no-tags", "prefix", "prompt", "ctr",
]  # fmt: skip
KINDS = ("order", "confidence", "cooccurrence")
F1 = "eval_f1"
LARGE, OWN = 223, 8  # entities of MultiWOZ, and at most of one dialogue: what is planned without a file


@dataclass(frozen=True)
class MiniatureSettings:
    """The town and the models that stand in for files that are not given."""

    dialogues: int = 800
    """Dialogues to train on; a sixth as many to test on, an eighth to choose by."""
    places: int = 80
    """Restaurants and hotels of the town."""
    towns: int = 100
    """Other towns, in which the generator learns to copy what a response needs from a place."""
    town_dialogues: int = 10
    """Dialogues of each of them."""
    width: int = 64
    """Of the generator and the retriever."""
    layers: int = 2
    """Of the generator's encoder and decoder, and of the retriever."""
    gated: bool = True
    """Whether the generator is a T5 1.1, or a T5 1.0."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Dialogues of the three sides."""
        return self.dialogues, max(self.dialogues // 8, 2), max(self.dialogues // 6, 2)


@dataclass(frozen=True)
class AligningSettings(SeededSettings):
    """A data set, two models, and how they are trained."""

    generator: ModelPath = ""
    """Encoder-decoder that writes responses: a T5 folder; without, a small one is raised in the run."""
    retriever: ModelPath = ""
    """Encoder that finds entities: a BERT folder, or one that this experiment has trained; without, a small one."""
    dataset: DataSet = "camrest"
    """Whose rules the files follow; the miniature follows those of CamRest."""
    knowledge: File = ""
    """Knowledge base, a list of entities (all_db.json of MAKER's files); without, the miniature."""
    entities: File = ""
    """{slot: [value, ...]}, the entities that are looked for in responses (entities.json)."""
    train_turns: File = ""
    """Turns to train on (train.json)."""
    validation_turns: File = ""
    """Turns by whose entity F1 the best state is chosen (val.json)."""
    test_turns: File = ""
    """Turns on which everything is measured (test.json)."""
    on_bad: OnBad = "error"
    """What a broken turn does: stop the run, or be left out and counted."""
    miniature: MiniatureSettings = MiniatureSettings()
    lengths: Lengths = Lengths()
    keep_missing: bool = True
    """Whether attributes that an entity lacks are written as dontknow."""
    projection: int = 128
    """Numbers of a vector of the retriever, where it has no projection yet."""
    contrastive_tau: float = 0.05
    """Temperature of the retriever's own training."""
    pretrain: TrainSettings = TrainSettings()
    raising: TrainSettings = TrainSettings()
    """How the miniature's generator learns to speak, in another town."""
    loss: MktodSettings = MktodSettings()
    joint: TrainSettings = TrainSettings()
    retriever_optimizer: OptimizerSettings = OptimizerSettings()
    answer_batch: int = 32
    """Turns that are answered at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "projection", "answer_batch", least=1)
        bounded(self, "contrastive_tau", above=0)

    @property
    def files(self) -> DialogueFiles:
        """The data set's files, as given."""
        return DialogueFiles(self.knowledge, self.entities, self.train_turns, self.validation_turns, self.test_turns)

    def check(self) -> None:
        """Refuse what would fail later."""
        check_files(self.files)
        if self.knowledge and not (self.generator and self.retriever):
            problem = "is missing beside --knowledge: the miniature's model knows the words of its own town only"
            field = "--retriever" if self.generator else "--generator"
            raise InputError(problem, field=field, cure="Give a T5 folder and a BERT folder")
        if not self.knowledge and (self.generator or self.retriever):
            problem = "is missing beside a model: the miniature has models of its own"
            raise InputError(problem, field="--knowledge", cure="Give the five files of a data set, too")


def arm_of(name: ArmName, loss: MktodSettings) -> MktodSettings:
    """What an arm changes of the whole method's settings."""
    if name in ("prefix", "prompt", "ctr"):
        return dataclasses.replace(loss, variant=name)
    if name == "no-mml":
        return dataclasses.replace(loss, beta=0.0)
    if name == "no-negative":
        return dataclasses.replace(loss, negative=False)
    if name == "no-tags":
        return _telling(loss)
    word, _, kind = name.partition("-")
    if word == "no":
        return _telling(loss, *(one for one in KINDS if one != kind and getattr(loss, one)))
    return loss if name == "full" else _telling(loss, kind)


def _telling(loss: MktodSettings, *kinds: str) -> MktodSettings:
    """The settings with tags of these kinds alone."""
    order, confidence, cooccurrence = (kind in kinds for kind in KINDS)
    return dataclasses.replace(loss, order=order, confidence=confidence, cooccurrence=cooccurrence)


def dialogues_of(s: AligningSettings, desk: Desk) -> Dialogues:
    """The data set, read."""
    files = s.files if s.knowledge else miniature_files(desk, s.miniature.sizes, s.miniature.places)
    return read_dialogues(files, s.dataset, s.loss.scale, desk.counts, s.on_bad)


def inputs_of(s: AligningSettings, knowledge: Knowledge, system: System) -> Inputs:
    """A knowledge base and its turns in the tokens of two models."""
    generator, retriever = system.generator, system.retriever
    assert generator.tokenizer is not None and retriever.tokenizer is not None
    return Inputs(
        knowledge, generator.tokenizer, retriever.tokenizer, generator.config.start, s.loss.scale, s.lengths,
        s.keep_missing,
    )  # fmt: skip


def models_of(s: AligningSettings, desk: Desk) -> System:
    """The two models before they meet: the user's, with the tokens of dialogues, or the miniature's."""
    compute = compute_for(s.joint, option="--joint")
    if not s.generator:
        return raised(s, desk)
    with desk.run.phase("loading"):
        generator = load(model_path(s.generator), dtype="float32", mesh=compute.mesh)
        retriever = load(model_path(s.retriever), dtype="float32", mesh=compute.mesh)
    return System(
        as_generator(generator, s.dataset), as_retriever(retriever, s.dataset, width=s.projection, seed=s.seed)
    )


def raised(s: AligningSettings, desk: Desk) -> System:
    """Small random models, of which the generator has learnt in another town to answer from the right place."""
    system = miniature_system(desk.seed, s.miniature.width, s.miniature.layers, s.projection, gated=s.miniature.gated)
    how = dataclasses.replace(
        s.loss, variant="ctr", gamma=0.0, beta=0.0, alpha=1.0, top_k=1, negative=False, scale="condensed"
    )
    settings = dataclasses.replace(s.raising, seed=desk.seed)

    def train(folder: RunFolder) -> System:
        size = s.miniature
        places, records = raising_towns(desk.seed, size.towns, size.town_dialogues, size.places)
        knowledge = knowledge_of(places, s.dataset)
        inputs = dataclasses.replace(inputs_of(s, knowledge, system), scale="condensed")
        turns = turns_of(records, knowledge, scale="condensed").turns
        data = shown(inputs, turns, [turn["about"] for turn in records])
        arrays = knowledge_arrays(inputs, how, compute_for(settings, option="--raising"))
        model = optimise(system.joined, data, mktod(how, s.retriever_optimizer), settings, folder, arrays=arrays)
        return system.parted(model.params)

    return kept_system(desk, "raised", train, made_from=[])


def kept_system(
    desk: Desk, stage: str, train: Callable[[RunFolder], System], *, made_from: Sequence[str], leaf: bool = False
) -> System:
    """A system that was trained: read from the folders of a stage, or trained and saved there in float32."""

    run = desk.run.sub(stage)

    def make(folder: Path) -> None:
        system = train(run)
        on_first(run.secure)
        with run.phase("saving"):
            save(system.generator, folder / "generator", dtype="float32")
            save(system.retriever, folder / "retriever", dtype="float32")

    desk.run.made_once(f"{stage}/model", make, made_from=made_from, leaf=leaf)
    with run.phase("loading"):
        return System(load(run.file("model/generator")), load(run.file("model/retriever")))


def pretrained(s: AligningSettings, desk: Desk, data: Dialogues, system: System) -> System:
    """The retriever after in-batch contrastive training on entities that are taken for right (section 3.3)."""
    settings, inputs = dataclasses.replace(s.pretrain, seed=desk.seed), inputs_of(s, data.knowledge, system)
    examples, numbers = inputs.queries(data.train)
    counts = desk.counter("retriever's own training")
    counts.update({"used": len(examples), "no entity matches": len(data.train) - len(examples)})
    desk.check_enough(len(examples), settings, "--pretrain", counts=False)
    held, held_numbers = inputs.queries(data.validation)
    turns, held_turns = [data.train[i] for i in numbers], [data.validation[i] for i in held_numbers]
    compute = compute_for(settings, option="--pretrain")
    queried = placed(inputs.queried, compute.mesh, (None, None))

    def train(folder: Path) -> None:
        run = desk.run.sub("retriever")
        model = optimise(
            system.retriever, Data(examples, named(turns)), retriever_pretraining(s.contrastive_tau), settings, run,
            held=Data(held, named(held_turns)), arrays=queried, best_by="eval_accuracy",
        )  # fmt: skip
        on_first(run.secure)
        save(model, folder, dtype="float32")

    desk.run.made_once("retriever/model", train, made_from=[] if s.generator else ["data", "raised/model"])
    with desk.run.phase("loading"):
        return dataclasses.replace(system, retriever=load(desk.run.file("retriever/model"), mesh=compute.mesh))


@dataclass(frozen=True)
class Board:
    """What was found on the test turns so far. ranked: retriever -> entities of every turn by rank; said: arm ->
    answers; scored: arm -> sums of its scores."""

    data: Dialogues
    dataset: DataSet
    top_k: int
    ranked: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    said: dict[str, list[Answered]] = field(default_factory=dict)
    scored: dict[str, Scored] = field(default_factory=dict)

    @property
    def ranks(self) -> list[int]:
        """The K of Recall@K that are told."""
        return sorted({1, min(3, self.top_k), min(5, self.top_k), self.top_k})

    def recall(self, name: str, k: int) -> Recall:
        """Recall@k of a retriever, on the test turns."""
        return recall_at(self.data.test, self.ranked[name], self.data.knowledge, k)

    def answer(self, name: str, answers: Sequence[Answered]) -> None:
        """Put the answers of an arm on the board."""
        self.said[name] = list(answers)
        self.ranked[name] = [one.entities for one in answers]
        self.scored[name] = score([one.text for one in answers], self.data.test, self.data.entities, self.dataset)

    def measures(self) -> dict[str, dict[str, float]]:
        """Every retriever's recall, and every system's scores besides."""
        out: dict[str, dict[str, float]] = {}
        for name in self.ranked:
            scored = self.scored.get(name)
            found = {"entity F1": scored.f1.f1, "BLEU": scored.bleu} if scored is not None else {}
            shares = {f"R@{k}": self.recall(name, k).share for k in self.ranks}
            out[name] = found | {k: v for k, v in shares.items() if v is not None}
        return out


def jointly(
    s: AligningSettings, desk: Desk, name: ArmName, data: Dialogues, system: System
) -> tuple[System, Answering]:
    """Generator and retriever after their joint training in one arm, the state with the best validation F1 of those
    that are kept, and what answers with them."""
    loss, settings = arm_of(name, s.loss), dataclasses.replace(s.joint, seed=desk.seed)
    inputs, compute = inputs_of(s, data.knowledge, system), compute_for(settings, option="--joint")
    joined = system.joined
    reader = answering(inputs, loss, joined.config, compute, s.answer_batch)

    def measured(params: Params) -> dict[str, float]:
        answers = reader.answers(params, data.validation)
        found = score([one.text for one in answers], data.validation, data.entities, s.dataset)
        return {F1: found.f1.f1, "eval_bleu": found.bleu}

    def train(folder: RunFolder) -> System:
        examples = Data(inputs.examples(data.train), named(data.train))
        model = optimise(
            joined, examples, mktod(loss, s.retriever_optimizer), settings, folder, arrays=reader.arrays,
            measured=measured, best_by=F1,
        )  # fmt: skip
        return system.parted(model.params)

    counts = desk.counter(f"arm {name}")
    counts["used"] = len(data.train)
    desk.check_enough(len(data.train), settings, "--joint", counts=False)
    return kept_system(desk, f"arms/{name}", train, made_from=["retriever/model"]), reader


def answered(desk: Desk, name: str, system: System, reader: Answering, turns: Sequence[Turn]) -> list[Answered]:
    """A system's answers to the turns of a file, in a file of the run."""
    params = place_params(system.joined.params, system.joined.config, reader.compute.mesh)
    records = desk.records(
        f"answers/{name}.jsonl",
        lambda: [
            {"dialogue": turn.dialogue, "response": one.text, "entities": one.entities, "scores": one.scores}
            for turn, one in zip(turns, reader.answers(params, turns), strict=True)
        ],
        made_from=[f"arms/{name}/model"],
    )
    return [Answered(r["response"], tuple(r["entities"]), tuple(r["scores"])) for r in records]


def exported(desk: Desk, system: System, arm: str) -> None:
    """The result: two folders, `model/generator` and `model/retriever`."""

    def make(folder: Path) -> None:
        save(system.generator, folder / "generator")
        save(system.retriever, folder / "retriever")

    with desk.run.phase("saving"):
        desk.run.made_once("model", make, made_from=[f"arms/{arm}/model"])


def plan_parts(s: AligningSettings, chat: str) -> list[Part]:
    """What a run computes, as far as it is planned: the joint training, and a chat model's answers."""
    lengths, count = s.lengths, len(load_records(s.knowledge)) if s.knowledge else LARGE
    tokens = {
        "context": lengths.context, "query": lengths.query, "entity": lengths.entity, "queried": lengths.query,
        "response": bucket_list(lengths.response)[-1], "entities": max(count, 1),
        "own": min(OWN, count) if s.loss.scale == "condensed" else 0,
    }  # fmt: skip
    joint = Aligning("joint training", s.generator, s.retriever, s.projection, s.loss, s.joint, tokens)
    how = SampleSettings(0.0, 1.0, num_samples=1, max_new_tokens=lengths.response, batch_size=s.answer_batch)
    return [joint, *([Sampling("chat", chat, how, "--answer-batch", "--chat")] if chat else [])]
