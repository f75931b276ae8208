"""The part of a run that has teachers: read the texts once, fuse what they say, train an arm on it, measure, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusion_jax.align.classes import token_classes
from fusion_jax.align.settings import AlignSettings
from fusion_jax.data.batches import Data
from fusion_jax.data.documents import Document
from fusion_jax.errors import InputError
from fusion_jax.evals.perplexity import surprise
from fusion_jax.failures import doing
from fusion_jax.files import write_json
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.folder import Model, tokenizer_of
from fusion_jax.models.int8 import Weights
from fusion_jax.options import Folders, Models, built
from fusion_jax.paths import as_path
from fusion_jax.plan.parts import Packing, Part, Teaching, Training
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.judging import EvalSet, judged
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.runs.plots import training_figure
from fusion_jax.runs.provenance import measures_sentence, write_report
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.teaching import Work
from fusion_jax.runs.trained import trained
from fusion_jax.settings import bounded
from fusion_jax.store.manifest import digest
from fusion_jax.teachers.blocks import LogProbs
from fusion_jax.teachers.documents import Reading, read_alike, read_documents, read_store
from fusion_jax.teachers.live import live_data
from fusion_jax.teachers.opinions import Reach, own_opinions, source_opinions
from fusion_jax.teachers.rows import fusion_rows, packed
from fusion_jax.teachers.settings import FusionSettings, Teachers
from fusion_jax.teachers.shares import shares_taken
from fusion_jax.teachers.store import identity_of as identity_of_store
from fusion_jax.teachers.targets import Mask, fused_examples, identity_of
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for


@dataclass(frozen=True)
class Arm:
    """How an arm is taught. sources: names of the teachers beside the pivot."""

    sources: Sequence[str]
    align: AlignSettings
    fusion: FusionSettings


UNTAUGHT = {"fusion.weight": 1.0, "fusion.schedule": "hard", "fusion.pivot": True}
ALONE = {"fusion.pivot": False}


@dataclass(frozen=True)
class FusingSettings(EvaluatedSettings, JudgedSettings):
    """Teachers, what is kept of their distributions, how these are aligned and fused, and how the target trains."""

    sources: Models = ("zoo:llama-source", "zoo:qwen-source", "zoo:gemma-source")
    """Models to learn from: folders, or zoo:NAME."""
    source_weights: Weights = "stored"
    """How the layers' matrices of the sources are held: as their files have them (stored), or rounded to int8, which
    takes half the memory of bfloat16."""
    log_probs: LogProbs = "float16"
    """How log-probs are kept of them: to the bit (float16), or in 8 bits (docs/stores.md)."""
    source_stores: Folders = ()
    """Stores of what the sources make of the texts, by cache_teacher.py (docs/stores.md): one for each source, in their
    order, - for one that reads them here. A source with a store is not loaded, and not measured."""
    max_length: int = 2048
    """Tokens that models read; longer texts are cut, longer chats left out and counted."""
    k: int = 10
    """Entries that are kept of every teacher's distribution."""
    teacher_batch: int = 8
    """Texts at once while teachers read."""
    teachers: Teachers = "stored"
    """Teachers read the texts once and their entries are kept (stored), or they stay in memory and read each batch
    while the target trains, every epoch anew (live): on its mesh, or on devices of their own (train.mesh_spare)."""
    align: AlignSettings = AlignSettings()
    fusion: FusionSettings = FusionSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "k", "teacher_batch", least=1)
        bounded(self, "max_length", least=2)
        if self.source_stores and len(self.source_stores) != len(self.sources):
            problem = f"{len(self.source_stores)} are given for {len(self.sources)} sources"
            raise InputError(problem, field="source_stores", cure="Give one for each source, - for one that reads here")
        if self.source_stores and self.teachers == "live":
            raise InputError("are of stored teachers", field="source_stores", cure="Leave out --teachers live")

    @property
    def stores(self) -> dict[str, str]:
        """The sources that have been read already: name -> folder of the store."""
        given = zip(self.sources, self.source_stores) if self.source_stores else ()
        return {model_name(source): store for source, store in given if store != "-"}

    def arm(self, sources: Sequence[str], changes: Mapping[str, Any]) -> Arm:
        """The arm of these sources, with some settings of `align` and `fusion` changed by their dotted names: `ALONE`
        for sources without the pivot, `UNTAUGHT` for an arm without teachers."""
        changed = built(self, {tuple(name.split(".")): value for name, value in changes.items()})
        return Arm(sources, changed.align, changed.fusion)


def check_stores(s: FusingSettings) -> None:
    """Refuse, before anything is trained, folders that hold no store, or one of another number of entries."""
    for store in s.stores.values():
        found = identity_of_store(as_path(store))
        if found.k != s.k:
            problem = f"holds {found.k} entries of a distribution, {s.k} are asked for"
            raise InputError(problem, file=store, field="--source-stores", cure=f"Set --k {found.k}, or write another")


TINY_TRAINING = TrainSettings(batch_size=16, micro_batches=1, log_every=1, checkpoint_every=500, remat="dots")


@dataclass(frozen=True)
class Corpus:
    """What models learn from and are measured on, by the name of each model, the pivot first.

    folders: of the models. limit: tokens that they read of a document. documents: as each of them reads them; held_out:
    alike, for bits per byte. tests: for accuracy.
    """

    folders: Mapping[str, Path]
    limit: int
    documents: Mapping[str, Sequence[Document]]
    held_out: Mapping[str, Sequence[Document]]
    tests: EvalSet

    @property
    def size(self) -> int:
        """How many documents there are to learn from."""
        return len(next(iter(self.documents.values())))


@dataclass(frozen=True)
class Fusing:
    """Teachers at a desk.

    mask: as in `teachers.targets.fuse`. whole: as in `source_opinions`; a source that reads the same
    texts in the same tokens is always aligned from end to end. packing: blocks of `corpus.limit` tokens with
    attention across texts ("official") or not ("reset"), or a text a row ("none"). measures: what was found so
    far; coverage: (arm, source, how much of it reaches the target). taken: of each arm, the share of each teacher.
    work: what the teachers have read.
    """

    desk: Desk
    settings: FusingSettings
    corpus: Corpus
    mask: Mask
    whole: bool
    packing: Packing = "none"
    measures: Measures = field(default_factory=dict)
    coverage: list[tuple[str, str, Reach]] = field(default_factory=list)
    taken: list[dict[str, str]] = field(default_factory=list)
    work: Work = field(default_factory=Work)

    @property
    def train(self) -> TrainSettings:
        """How arms train."""
        return replace(self.settings.train, seed=self.desk.seed)

    def load(self, folder: Path) -> Model:
        """A model on the mesh of training."""
        return self.desk.load(folder, self.train)

    def measure(self, name: str, model: Model, *, answers: str = "", reader: str = "") -> None:
        """Bits per byte of the held-out documents and accuracy on the test prompts, where there are any.

        Args:
          answers: the file of its answers; reader: whose documents it reads; the pivot's when left out.
        """
        found: dict[str, float] = {}
        documents = self.corpus.held_out.get(reader or next(iter(self.corpus.folders)), ())
        if documents:
            compute = compute_for(self.train)
            with self.desk.run.phase("judging"):
                read = surprise(model, documents, max_length=self.corpus.limit, compute=compute)
            found["bits per byte"] = read.bits_per_byte
        for row in judged(self.desk.run, answers or name, model, self.corpus.tests):
            found["accuracy" if row["skill"] == "all" else row["skill"]] = row["accuracy"]
        self.measures[name] = found

    def read(self, name: str) -> Reading:
        """Measure a model and have it read its documents; a stored one is let go with the call. Of a source with a
        store, that is read."""
        if name in self.settings.stores:
            with doing(f"reading the store of {name}"):
                return read_store(
                    as_path(self.settings.stores[name]), name, tokenizer_of(self.corpus.folders[name]),
                    self.corpus.documents[name], k=self.settings.k, max_length=self.corpus.limit,
                )  # fmt: skip
        pivot, live = name == next(iter(self.corpus.folders)), self.settings.teachers == "live"
        weights: Weights = "stored" if pivot else self.settings.source_weights
        run, folder = self.desk.run, self.corpus.folders[name]
        model, compute = self.desk.teacher(folder, self.train, weights, self.settings.teachers)
        apart = live and self.train.mesh_spare > 0
        self.measure(name, self.desk.load(folder, self.train, weights) if apart else model, reader=name)
        with doing(f"reading {name}"), run.timed(f"reading {name}"):
            reading = read_documents(
                None if live else run.sub("teachers").file(name), name, model, self.corpus.documents[name],
                k=self.settings.k, max_length=self.corpus.limit, compute=compute,
                batch_size=self.settings.teacher_batch, progress=run.progress, log_probs=self.settings.log_probs,
            )  # fmt: skip
        what, times = ("reading, for each arm", self.train.epochs) if live else ("reading", 1.0)
        self.work.note(name, what, model.config, [len(text.ids) for text in reading.texts], times)
        return reading

    def trained(self, name: str, arm: Arm, start: Model, readings: Mapping[str, Reading]) -> Model:
        """An arm's model: its teachers aligned and fused, and the target trained on what they say.

        Args:
          start: the target. readings: of every model, the pivot first.
        """
        run, pivot = self.desk.run, next(iter(readings.values()))
        opinions = [own_opinions(pivot, arm.fusion)]
        for source in arm.sources:
            folder, reading = run.sub("aligned").file(source), readings[source]
            whole = self.whole or read_alike(pivot, reading)
            with run.timed(f"aligning {source}"):
                views, reach = source_opinions(
                    folder, pivot, reading, arm.align, arm.fusion, whole=whole, progress=run.progress
                )
            opinions.append(views)
            self.coverage.append((name, source, reach))
        rows, dropped = fusion_rows(pivot.texts, opinions)
        self.desk.counter("records").update({f"{name}: {what}": n for what, n in dropped.items()})
        reset = self.packing == "reset"
        if self.packing != "none":
            rows = packed(rows, self.corpus.limit, reset=reset)
        shares = shares_taken(rows, arm.fusion) if arm.sources else None
        if shares is not None:
            names = (pivot.name, *arm.sources)
            self.taken.append({"arm": name} | {n: f"{share:.3f}" for n, share in zip(names, shares, strict=True)})
        place = run.sub("arms").sub(name)
        if pivot.live:
            data = live_data(rows, arm.fusion, k=self.settings.k, mask=self.mask, reset=reset)
        else:
            data = Data(fused_examples(place.file("examples"), rows, arm.fusion, mask=self.mask, reset=reset))
        objective = objectives.fusion(arm.fusion, token_classes(pivot.view))
        made_of = identity_of(rows, arm.fusion, self.mask, reset)
        fused = trained(
            place, start, compute_for(self.train).mesh,
            lambda folder: optimise(start, data, objective, self.train, folder),
            made_from=[f"fused examples={digest(made_of)}"],
        )  # fmt: skip
        self.measure(name, fused)
        return fused

    def report(self, *, before: str, plain: str) -> Measures:
        """report.md of all arms, its results on the screen, and what was measured.

        Args:
          before: the target before training; plain: the arm without teachers.
        """
        result = measures_sentence(self.measures, list(self.measures)[-1], before, plain)
        self.desk.run.on_first(lambda: self._write_report(result))
        return self.measures

    def _write_report(self, result: str) -> None:
        run, results = self.desk.run, "No held-out data and no test prompts: nothing is measured."
        if any(self.measures.values()):
            lines = [{"model": n, **{k: f"{v:.4f}" for k, v in m.items()}} for n, m in self.measures.items()]
            results = markdown_table(lines)
        write_json(run.file("coverage.json"), [
            {"arm": arm, "source": source, "rules": reach.rules, "mass": reach.mass,
             "classes": {name: c._asdict() for name, c in reach.classes.items()}}
            for arm, source, reach in self.coverage
        ])  # fmt: skip
        arms = {path.name: path for path in sorted(run.file("arms").iterdir())}
        counts: Counter[str] = self.desk.counts.get("records", Counter())
        parts = [
            "## Held-out data", results,
            "## Training", save_figure(training_figure(arms), run.file("training.png")),
            *(["## What each teacher gives (share of the tokens)", _by_teacher(self.taken)] if self.taken else []),
            *reach_parts(self.coverage, "arm"),
            *self.work.parts(),
            "## Records", markdown_table([{"what": k, "count": v} for k, v in counts.items() if v]),
        ]  # fmt: skip
        write_report(run, self.desk.title, result, self.desk.ran, parts)
        run.log(results)
        run.log(result)
        run.log(f"report: {run.file('report.md')}")


def _by_teacher(taken: Sequence[Mapping[str, str]]) -> str:
    """A line an arm, a column a teacher."""
    names = dict.fromkeys(name for line in taken for name in line)
    return markdown_table([{name: line.get(name, "") for name in names} for line in taken])


def reach_parts(coverage: Sequence[tuple[str, str, Reach]], what: str) -> list[str]:
    """The part of a report about rules and classes of every source by arm (or `what` else it is); those that align a
    source alike are listed once."""
    rules, classes, seen = [], [], list[tuple[str, Reach]]()
    for arm, source, reach in coverage:
        rules.append({what: arm, "source": source, **{name: f"{share:.3f}" for name, share in reach.rules.items()}})
        if (source, reach) in seen:
            continue
        seen.append((source, reach))
        for name, mass in [("all", reach.mass), *((n, c._asdict()) for n, c in reach.classes.items())]:
            classes.append({
                what: arm, "source": source, "class": name, "probability": f"{mass.get('mass', 1.0):.4f}",
                "kept": f"{mass['kept']:.4f}", "to other text": f"{mass['altered']:.4f}",
                "unmapped": f"{mass['unmapped']:.4f}", "unlisted": f"{mass['unlisted']:.4f}" if name == "all" else "",
            })  # fmt: skip
    return [
        "## What decided the rows of each source (shares of the target's tokens)", markdown_table(rules),
        "## Probability of each source by class of token",
        "Of the k entries at each token: how much is on tokens of a class, and of that what reaches the target as the "
        "same text (kept), as another text, or not at all (unmapped). All classes: shares of all probability, of which "
        "the entries leave some unlisted.", markdown_table(classes),
    ]  # fmt: skip


def fusing_parts(s: FusingSettings, title: str, target: str, named: str, packing: Packing = "none") -> list[Part]:
    """What a fusion of distributions computes; of the models that read, the target is planned (sources:
    experiments/cache_teacher.py --plan).

    Args:
      title: of the training; named: the option that names the target.
    """
    models = [(named, target), *(("--sources", source) for source in s.sources)]
    reads = [
        Teaching(
            f"reading {model}", model, s.train, s.teacher_batch, s.max_length, s.k, named=option,
            planned=not i or s.teachers == "live", weights=s.source_weights if i else "stored",
        )
        for i, (option, model) in enumerate(models)
        if not i or model_name(model) not in s.stores
    ]  # fmt: skip
    learnt = Training(
        title, target, objectives.fusion(s.fusion), s.train, s.max_length, named=named, length="--max-length", k=s.k,
        packing=packing, teachers=reads if s.teachers == "live" else (),
    )  # fmt: skip
    return [*reads, learnt]
