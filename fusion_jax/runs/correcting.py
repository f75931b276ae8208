"""A run that trains correctors of grammatical errors: its data, its trainings, and how what they write is scored.

Stages of Alirector (arXiv 2402.04601, section 1 of its specification).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.correction.inputs import Lengths, Mode
from fusion_jax.correction.operations import load_fcgec
from fusion_jax.correction.outputs import GuardSettings, draft_triples
from fusion_jax.correction.pairs import Pair, Sentence, Triple, load_pairs, load_para, pairs_of
from fusion_jax.correction.split import SplitSettings, stage_sizes, validation_split
from fusion_jax.data.batches import Data
from fusion_jax.data.records import OnBad
from fusion_jax.errors import InputError
from fusion_jax.evals.cgec import Dictionaries, Report, load_dictionaries, score
from fusion_jax.evals.cgec import Mode as ScorerMode
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params, parameter_specs, place_params
from fusion_jax.options import Called, File
from fusion_jax.plan import correcting as plan
from fusion_jax.plan.correcting import Texts, Writing
from fusion_jax.plan.parts import Part
from fusion_jax.plan.programs import Start
from fusion_jax.runs.correctors import CONTROLS, MODES, Corrector, WritingSettings
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.page import SeededSettings
from fusion_jax.runs.trained import trained
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train.alirector import AlirectorSettings, alirector, copying, corrector
from fusion_jax.train.objective import Objective
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.zoo import chinese
from fusion_jax.zoo.chinese import ChineseSettings

Files = Annotated[tuple[str, ...], Called("FILE")]
MINIATURE, MINIATURE_DECODER = "zoo:chinese", "zoo:chinese-decoder"  # random weights


@dataclass(frozen=True)
class CorrectingSettings(EvaluatedSettings, SeededSettings):
    """A model, pairs of sentences with their corrections, and test sentences."""

    model: Annotated[str, Called("MODEL")] = MINIATURE
    """Model that learns to correct: a Hugging Face folder of a BART with a BERT tokenizer, or of a decoder; zoo:chinese
    and zoo:chinese-decoder are miniatures with random weights."""
    pairs: File = ""
    """Training pairs {"source", "target"}: a JSON list or JSON lines; without, the zoo's."""
    tests: Files = ()
    """Test sentences: para files of id, source and references, separated by tabs, or FCGEC's JSON; without, the zoo's.
    """
    fcgec: File = ""
    """FCGEC's training file: the models go on with it behind the pairs."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    raised: int = 0
    """Right sentences that a miniature is raised on: it learns to tell them from what noise has left of them."""
    validation: int = 2000
    """Pairs that are kept from training, on which losses are measured."""
    fcgec_validation: int = 1000
    """The same of FCGEC's."""
    split: SplitSettings = SplitSettings()
    corpus: ChineseSettings = ChineseSettings()
    lengths: Lengths = Lengths()
    cutoff: int = 192
    """Tokens of a decoder's prompt with its correction; what is behind is cut."""
    writing: WritingSettings = WritingSettings()
    output: GuardSettings = GuardSettings()
    scorer: ScorerMode = "no_dict"
    """How edits are found: by one minimal path (first_path) or all (official_all) with dictionaries, or without them
    (no_dict); docs/cgec.md."""
    thesaurus: File = ""
    """Thesaurus of synonyms of the scorer, one of the official dictionaries."""
    confusions: File = ""
    """Confusion set of the scorer."""
    loss: AlirectorSettings = AlirectorSettings()
    seen: Literal["both", "one"] = "both"
    """What alignment models read: source and draft, or one of them twice, as a control."""
    raising: TrainSettings = TrainSettings()
    corrector: TrainSettings = TrainSettings()
    alignment: TrainSettings = TrainSettings()
    distillation: TrainSettings = TrainSettings()
    further: TrainSettings = TrainSettings()
    """How all models go on with FCGEC."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "validation", "fcgec_validation", "raised", least=0)
        bounded(self, "cutoff", least=8)
        if bool(self.thesaurus) != bool(self.confusions):
            one, other = ("confusions", "thesaurus") if self.thesaurus else ("thesaurus", "confusions")
            raise InputError("is missing", field=one, cure=f"Give it with --{other}, or neither")
        if self.scorer == "official_all" and not self.thesaurus:
            raise InputError("needs the dictionaries", field="scorer", cure="Give --thesaurus and --confusions")


class Task(NamedTuple):
    """What a run learns from and is measured on. train: pairs; held: for held-out losses; tests: sentences, by name of
    their file; fcgec, fcgec_held: further training pairs, and for held-out losses."""

    train: list[Pair]
    held: list[Pair]
    tests: dict[str, list[Sentence]]
    fcgec: list[Pair]
    fcgec_held: list[Pair]


@dataclass(frozen=True)
class Correcting:
    """Correctors at a desk. like: how all of them read and write; start: what trainings begin from; held: on which
    losses are measured; reports: of each model and test file."""

    desk: Desk
    settings: CorrectingSettings
    task: Task
    like: Corrector
    start: Model
    held: list[Pair]
    dictionaries: Dictionaries | None = None
    reports: dict[str, dict[str, Report]] = field(default_factory=dict)

    @property
    def further(self) -> Correcting:
        """The same run on FCGEC."""
        return dataclasses.replace(self, held=self.task.fcgec_held)

    def trained(
        self, name: str, start: Model, items: Sequence[Pair | Triple], how: TrainSettings, mode: Mode = "correct"
    ) -> Model:
        """A model that learns the corrections of records, which it reads in a mode."""
        return self._learnt(name, start, items, how, corrector(self.settings.loss.normalise), mode)

    def copying(self, name: str, start: Model, items: Sequence[Pair], how: TrainSettings) -> Model:
        """A corrector that may copy from its source, whose gate is new."""
        config = dataclasses.replace(start.config, head=dataclasses.replace(start.config.head, copying=True))
        specs, key = parameter_specs(config)["copy"], jax.random.key(self.desk.seed)
        fresh = {part: spec.init(key, spec.shape, jnp.float32) for part, spec in specs.items()}
        start = dataclasses.replace(start, config=config, params=start.params | {"copy": fresh})
        return self._learnt(name, start, items, how, copying(self.settings.loss.normalise), "correct")

    def distilled(
        self, name: str, start: Model, triples: Sequence[Triple], teachers: Mapping[str, Model], how: TrainSettings
    ) -> Model:
        """A corrector that learns the corrections and, beside them, from its alignment models."""
        s = self.settings
        if not s.loss.beta:
            return self.trained(name, start, triples, how)
        objective = alirector(s.loss, judged_alone=bool(self.like.config.encoder))
        compute, config = compute_for(how), self.like.config
        arrays = {name: place_params(m.params, config, compute.mesh, compute.dtype) for name, m in teachers.items()}
        return self._learnt(name, start, triples, how, objective, "correct", arrays)

    def _learnt(
        self, name: str, start: Model, items: Sequence[Pair | Triple], how: TrainSettings, objective: Objective,
        mode: Mode, arrays: Mapping[str, object] | None = None,
    ) -> Model:  # fmt: skip
        taught = arrays is not None
        examples, counts = self.like.examples(items, mode, taught=taught)
        self.desk.counter(name).update(counts + Counter({"used": len(examples)}))
        self.desk.check_enough(len(examples), how, self._option(how))
        held: Data | None = None
        if self.held and mode == "correct":
            whole = taught and objective.held is None  # the alignment models' loss is held out, too: drafts are needed
            unseen = self.drafted(f"{name}-held", start, self.held) if whole else self.held
            held = Data(self.like.examples(unseen, mode, taught=whole)[0], lambda i: f"held-out pair {i + 1}")
        data = Data(examples, lambda i: f"the pair of '{items[examples[i].index].source}'")
        settings = dataclasses.replace(how, seed=self.desk.seed)
        return trained(
            self.desk.run.sub(name), start, compute_for(settings).mesh,
            lambda folder: optimise(start, data, objective, settings, folder, held=held, arrays=arrays),
        )  # fmt: skip

    def _option(self, how: TrainSettings) -> str:
        """The option that has these settings."""
        names = ("corrector", "alignment", "distillation", "further", "raising")
        return next((f"--{name}" for name in names if getattr(self.settings, name) is how), "--corrector")

    def aligned(self, triples: Sequence[Triple], before: Mapping[str, Model] | None = None) -> dict[str, Model]:
        """Both alignment models, which learn the corrections from sources and drafts.

        before: of the pairs, from which FCGEC's go on; by default they begin from the model that all begin from.
        """
        s, begun = self.settings, before or {}
        how, prefix = (s.further, "fcgec-") if before else (s.alignment, "")
        return {
            name: self.trained(prefix + name, begun.get(name, self.start), triples, how, mode)
            for name, mode in self.like.modes.items()
        }

    def drafted(self, name: str, model: Model, pairs: Sequence[Pair]) -> list[Triple]:
        """Pairs with what a corrector makes of their sources; drafts that do not end are left out and counted."""

        def made() -> list[Record]:
            with self.desk.run.phase("decoding"):
                found = self.like.written(model, pairs)
            lines = [{"pred": text, "ended": end} for text, end in zip(found.texts, found.ended, strict=True)]
            return _with_counts(lines, found.counts)

        records = self.desk.records(f"{name}.jsonl", made)
        self.desk.counter(name).update(_counts_in(records))
        triples, left = draft_triples(pairs, [r["pred"] for r in records], [bool(r["ended"]) for r in records])
        self.desk.counter(name).update(left + Counter({"drafts": len(triples)}))
        same = sum(one.pred == one.target for one in triples)
        self.desk.counter(name)["drafts that equal the correction"] = same
        return triples

    def judge(self, name: str, model: Model, second: Model | None = None) -> None:
        """Score what a model makes of the test sentences; second: an alignment model that reads them with that."""
        for test, sentences in self.task.tests.items():
            texts = self._answers(name, test, sentences, model, second)
            sources, references = [s.source for s in sentences], [s.references for s in sentences]
            mode = self.settings.scorer
            self.reports.setdefault(name, {})[test] = score(sources, texts, references, mode, self.dictionaries)

    def _answers(
        self, name: str, test: str, sentences: Sequence[Sentence], model: Model, second: Model | None
    ) -> list[str]:
        pairs = [Pair(one.source, one.references[0]) for one in sentences]

        def made() -> list[Record]:
            with self.desk.run.phase("decoding"):
                found = self.like.written(model, pairs)
                if second is not None:
                    both = [Triple(p.source, p.target, text) for p, text in zip(pairs, found.texts, strict=True)]
                    again = self.like.written(second, both, self.like.modes["source_first"])
                    found = again._replace(counts=found.counts + again.counts)
            lines = [{"id": one.name, "text": text} for one, text in zip(sentences, found.texts, strict=True)]
            return _with_counts(lines, found.counts)

        records = self.desk.records(f"answers/{name}/{test}.jsonl", made)
        self.desk.counter(f"{name}, {test}").update(_counts_in(records))
        return [str(r["text"]) for r in records]


def correcting(s: CorrectingSettings, desk: Desk) -> Correcting:
    """Data and the model that trainings begin from."""
    start = start_of(s, desk)
    assert start.tokenizer is not None  # `tokenizer_of` has looked
    task = task_of(s, desk)
    modes = MODES if s.seen == "both" else CONTROLS
    like = Corrector(start.config, start.tokenizer, s.lengths, s.cutoff, s.output, s.writing, modes)
    dictionaries = load_dictionaries(s.thesaurus, s.confusions) if s.thesaurus else None
    for name, pairs in (("pairs", task.train + task.held), ("fcgec", task.fcgec + task.fcgec_held)):
        like.check_readable([pair.source for pair in pairs], f"--{name}")
    for name, sentences in task.tests.items():
        like.check_readable([one.source for one in sentences], name)
    run = Correcting(desk, s, task, like, start, task.held, dictionaries)
    if s.model not in (MINIATURE, MINIATURE_DECODER) or not s.raised:
        return run
    pairs = chinese.noised(chinese.right_sentences(s.raised, desk.seed), desk.seed)
    pairs = [pair for pair in pairs if len(pair.target) <= s.corpus.longest]
    return dataclasses.replace(run, start=run.trained("raised", start, pairs, s.raising))


def _with_counts(lines: list[Record], counts: Counter[str]) -> list[Record]:
    """Records, the first of which also tells how often which guard acted, so that a run that goes on knows it."""
    return [{**line, **({"counts": dict(counts)} if not number else {})} for number, line in enumerate(lines)]


def _counts_in(records: Sequence[Record]) -> Counter[str]:
    return Counter(records[0].get("counts", {}) if records else {})


def start_of(s: CorrectingSettings, desk: Desk) -> Model:
    """The pretrained model, or a miniature with random weights of the run's seed."""
    if s.model not in (MINIATURE, MINIATURE_DECODER):
        return desk.load(s.model, s.corrector)
    tokenizer = chinese.wordpiece() if s.model == MINIATURE else chinese.by_character()
    config = (chinese.bart if s.model == MINIATURE else chinese.llama)(tokenizer)
    return Model(config, init_params(config, jax.random.key(desk.seed)), tokenizer)


def task_of(s: CorrectingSettings, desk: Desk) -> Task:
    """Pairs and test sentences, the user's or the zoo's; what is left out is counted."""
    made = None if s.pairs and s.tests else chinese.corpus(dataclasses.replace(s.corpus, seed=desk.seed))
    pairs = made.train if made is not None and not s.pairs else []
    if s.pairs:
        pairs, dropped = load_pairs(s.pairs, on_bad=s.on_bad)
        desk.counter("pairs").update(dropped)
    tests = {Path(file).stem: _sentences(s, desk, file) for file in s.tests}
    if made is not None and not s.tests and not s.pairs:
        tests = {"test": [one.sentence for one in made.test]}
    further, unseen = list[Pair](), list[Pair]()
    if s.fcgec:
        sentences, dropped = load_fcgec(s.fcgec, on_bad=s.on_bad)
        further, left = pairs_of(sentences)
        further, unseen = validation_split(further, s.fcgec_validation, desk.seed, field="fcgec_validation")
        desk.counter("FCGEC").update(dropped + left + Counter({"used": len(further), "held out": len(unseen)}))
    pairs, held = validation_split(pairs, s.validation, desk.seed, order=s.split.order)
    desk.counter("pairs").update({"used": len(pairs), "held out": len(held)})
    return Task(pairs, held, tests, further, unseen)


def _sentences(s: CorrectingSettings, desk: Desk, file: str) -> list[Sentence]:
    read = load_fcgec if file.endswith(".json") else load_para
    sentences, dropped = read(file, on_bad=s.on_bad)
    desk.counter(f"test sentences of {file}").update(dropped + Counter({"used": len(sentences)}))
    return sentences


def correcting_parts(s: CorrectingSettings) -> list[Part]:
    """What the run computes, with the stages that others stand for left out: training on all pairs or further without
    alignment models is as a corrector's, and so is what goes on with FCGEC. Of a miniature nothing is planned, which
    nothing has to fit."""
    random, texts = s.model in (MINIATURE, MINIATURE_DECODER), _texts(s.lengths, s.cutoff)
    how = SampleSettings(
        temperature=0.0, top_p=1.0, num_samples=1, beams=s.writing.beams, max_new_tokens=s.writing.max_new_tokens,
        batch_size=s.writing.batch_size,
    )  # fmt: skip

    def first(pairs: int) -> int:
        return stage_sizes(max(pairs - s.validation, 0), s.split.share)[0]

    def second(pairs: int) -> int:
        return stage_sizes(max(pairs - s.validation, 0), s.split.share)[1]

    pair = dataclasses.replace(texts, read=s.lengths.pair)
    beside = dataclasses.replace(texts, beside=s.lengths.pair if s.loss.beta else 0)
    kept: Start = "float32"  # of models that were trained
    return [
        plan.Corrector("corrector", s.model, s.corrector, texts, "--corrector", records=first, random=random),
        Writing("drafts", s.model, how, texts, second, random),
        plan.Corrector("alignment model, each of two", s.model, s.alignment, pair, "--alignment", others=(kept, kept),
                  records=second, random=random),
        plan.Corrector("Alirector", s.model, s.distillation, beside, "--distillation", kept, ("bfloat16", kept, kept),
                  second, random),
    ]  # fmt: skip


def _texts(lengths: Lengths, cutoff: int) -> Texts:
    return Texts(lengths.source, lengths.target, cutoff)
