"""A run that trains correctors of grammatical errors: its data, its trainings, and how what they write is scored.

Stages of Alirector (arXiv 2402.04601, section 1 of its specification).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import jax

from fusion_jax.correction.inputs import Lengths, Mode, marks_of
from fusion_jax.correction.operations import load_fcgec
from fusion_jax.correction.outputs import GuardSettings, draft_triples
from fusion_jax.correction.pairs import Pair, Sentence, Triple, load_pairs, load_para, pairs_of
from fusion_jax.correction.prompts import framing_of
from fusion_jax.correction.split import SplitSettings, validation_split
from fusion_jax.data.batches import Data
from fusion_jax.data.records import OnBad
from fusion_jax.errors import InputError
from fusion_jax.evals.cgec import Mode as ScorerMode
from fusion_jax.evals.cgec import Report, load_dictionaries, score
from fusion_jax.models.folder import Model, check_folder, tokenizer_of
from fusion_jax.models.parameters import init_params, place_params
from fusion_jax.options import Called, File
from fusion_jax.plan.parts import Part
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.correctors import CONTROLS, MODES, Corrector, WritingSettings
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import SeededSettings
from fusion_jax.runs.trained import trained
from fusion_jax.settings import bounded
from fusion_jax.train.alirector import AlirectorSettings, alirector, corrector
from fusion_jax.train.objective import Objective
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.zoo import chinese, model_path
from fusion_jax.zoo.chinese import ChineseSettings

Files = Annotated[tuple[str, ...], Called("FILE")]
MINIATURE, MINIATURE_DECODER = "zoo:chinese", "zoo:chinese-decoder"  # random weights


@dataclass(frozen=True)
class CorrectingSettings(SeededSettings):
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
    validation: int = 2000
    """Pairs that are kept from training, on which losses are measured."""
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
    corrector: TrainSettings = TrainSettings()
    alignment: TrainSettings = TrainSettings()
    distillation: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "validation", least=0)
        bounded(self, "cutoff", least=8)
        if bool(self.thesaurus) != bool(self.confusions):
            one, other = ("confusions", "thesaurus") if self.thesaurus else ("thesaurus", "confusions")
            raise InputError("is missing", field=one, cure=f"Give it with --{other}, or neither")
        if self.scorer == "official_all" and not self.thesaurus:
            raise InputError("needs the dictionaries", field="scorer", cure="Give --thesaurus and --confusions")


class Task(NamedTuple):
    """What a run learns from and is measured on. train: pairs; held: for held-out losses; tests: sentences, by name of
    their file; fcgec: further training pairs."""

    train: list[Pair]
    held: list[Pair]
    tests: dict[str, list[Sentence]]
    fcgec: list[Pair]


@dataclass(frozen=True)
class Correcting:
    """Correctors at a desk. like: how all of them read and write; start: what trainings begin from; reports: of each
    model and test file."""

    desk: Desk
    settings: CorrectingSettings
    task: Task
    like: Corrector
    start: Model
    reports: dict[str, dict[str, Report]] = field(default_factory=dict)
    written: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def trained(
        self, name: str, start: Model, items: Sequence[Pair | Triple], how: TrainSettings, mode: Mode = "correct"
    ) -> Model:
        """A model that learns the corrections of records, which it reads in a mode."""
        return self._learnt(name, start, items, how, corrector(self.settings.loss.normalise), mode)

    def distilled(
        self, name: str, start: Model, triples: Sequence[Triple], teachers: Mapping[str, Model]
    ) -> Model:
        """A corrector that learns the corrections and, beside them, from its alignment models."""
        s, how = self.settings, self.settings.distillation
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
        self.desk.check_enough(len(examples), how, "--distillation" if taught else "--corrector")
        held = None
        if self.task.held and mode == "correct":
            held = Data(self.like.examples(self.task.held, mode)[0], lambda i: f"held-out pair {i + 1}")
        data, settings = Data(examples, lambda i: f"pair {i + 1}"), dataclasses.replace(how, seed=self.desk.seed)
        return trained(
            self.desk.run.sub(name), start, compute_for(settings).mesh,
            lambda folder: optimise(start, data, objective, settings, folder, held=held, arrays=arrays),
        )  # fmt: skip

    def aligned(
        self, triples: Sequence[Triple], before: Mapping[str, Model] | None = None, prefix: str = ""
    ) -> dict[str, Model]:
        """Both alignment models, which learn the corrections from sources and drafts.

        before: what they begin from; by default the model that every training begins from.
        """
        s, start = self.settings, before or {}
        return {
            name: self.trained(prefix + name, start.get(name, self.start), triples, s.alignment, mode)
            for name, mode in self.like.modes.items()
        }

    def drafted(self, name: str, model: Model, pairs: Sequence[Pair]) -> list[Triple]:
        """Pairs with what a corrector makes of their sources; drafts that do not end are left out and counted."""

        def made() -> list[dict[str, object]]:
            with self.desk.run.phase("decoding"):
                found = self.like.written(model, pairs)
            self.desk.counter(name).update(found.counts)
            return [{"pred": text, "ended": end} for text, end in zip(found.texts, found.ended, strict=True)]

        records = self.desk.records(f"{name}.jsonl", made)
        triples, left = draft_triples(pairs, [r["pred"] for r in records], [bool(r["ended"]) for r in records])
        self.desk.counter(name).update(left + Counter({"drafts": len(triples)}))
        same = sum(one.pred == one.target for one in triples)
        self.desk.counter(name)["drafts that equal the correction"] = same
        return triples

    def judge(self, name: str, model: Model, second: Model | None = None) -> None:
        """Score what a model makes of the test sentences; second: an alignment model that reads them with that."""
        for test, sentences in self.task.tests.items():
            texts = self._answers(name, test, sentences, model, second)
            self.written.setdefault(name, {})[test] = texts
            sources, references = [s.source for s in sentences], [s.references for s in sentences]
            s = self.settings
            dictionaries = load_dictionaries(s.thesaurus, s.confusions) if s.thesaurus else None
            self.reports.setdefault(name, {})[test] = score(sources, texts, references, s.scorer, dictionaries)

    def _answers(
        self, name: str, test: str, sentences: Sequence[Sentence], model: Model, second: Model | None
    ) -> list[str]:
        pairs = [Pair(one.source, one.references[0]) for one in sentences]

        def made() -> list[dict[str, object]]:
            with self.desk.run.phase("decoding"):
                found = self.like.written(model, pairs)
                if second is not None:
                    both = [Triple(p.source, p.target, text) for p, text in zip(pairs, found.texts, strict=True)]
                    found = self.like.written(second, both, self.like.modes["source_first"])
            self.desk.counter(f"{name}, {test}").update(found.counts)
            return [{"id": one.name, "text": text} for one, text in zip(sentences, found.texts, strict=True)]

        return [str(r["text"]) for r in self.desk.records(f"answers/{name}/{test}.jsonl", made)]


def correcting(s: CorrectingSettings, desk: Desk) -> Correcting:
    """Data and the model that trainings begin from."""
    start = start_of(s, desk)
    assert start.tokenizer is not None  # `tokenizer_of` has looked
    task = task_of(s, desk)
    modes = MODES if s.seen == "both" else CONTROLS
    like = Corrector(start.config, start.tokenizer, s.lengths, s.cutoff, s.output, s.writing, modes)
    return Correcting(desk, s, task, like, start)


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
    tests = {model_name(file).rpartition(".")[0]: _sentences(s, desk, file) for file in s.tests}
    if made is not None and not s.tests and not s.pairs:
        tests = {"test": [one.sentence for one in made.test]}
    further: list[Pair] = []
    if s.fcgec:
        sentences, dropped = load_fcgec(s.fcgec, on_bad=s.on_bad)
        further, left = pairs_of(sentences)
        desk.counter("FCGEC").update(dropped + left + Counter({"used": len(further)}))
    pairs, held = validation_split(pairs, s.validation, desk.seed, order=s.split.order)
    desk.counter("pairs").update({"used": len(pairs), "held out": len(held)})
    return Task(pairs, held, tests, further)


def _sentences(s: CorrectingSettings, desk: Desk, file: str) -> list[Sentence]:
    read = load_fcgec if file.endswith(".json") else load_para
    sentences, dropped = read(file, on_bad=s.on_bad)
    desk.counter(f"test sentences of {file}").update(dropped + Counter({"used": len(sentences)}))
    return sentences


def check_corrector(s: CorrectingSettings) -> None:
    """Refuse, before the first stage, files without their counterpart, and a model that the run cannot train."""
    if bool(s.pairs) != bool(s.tests):
        field, cure = ("tests", "pairs") if s.pairs else ("pairs", "tests")
        raise InputError("is missing", field=field, cure=f"Give it with --{cure}, or neither")
    if s.model in (MINIATURE, MINIATURE_DECODER):
        return
    if s.model.startswith("zoo:"):
        cure = f"Give {MINIATURE}, {MINIATURE_DECODER} or a folder"
        raise InputError(f"'{s.model}' corrects no Chinese", field="model", cure=cure)
    config = check_folder(model_path(s.model, "--model"))
    tokenizer = tokenizer_of(model_path(s.model), "--model")
    if not config.decoder:
        raise InputError("is an encoder, which writes nothing", file=s.model, field="--model", cure="Give a BART")
    (marks_of if config.encoder else framing_of)(tokenizer)


def correcting_parts(s: CorrectingSettings) -> list[Part]:
    """What the run computes; of a miniature, which nothing has to fit, nothing."""
    return []
