"""The desk of an experiment: the services of a run (load, sample, train, judge, export, report), each done once.

A desk holds a run's folder and what the run has found so far: counts of what was used and dropped, and how the models
answered. Every stage goes through it, so that a page reads as the method's algorithm.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.data.batches import Data, Example
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.records import OnBad, Row, parse_rows
from fusion_jax.files import write_json
from fusion_jax.hosts.agree import on_first
from fusion_jax.intervals import wilson
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model, load, save
from fusion_jax.models.int8 import Weights, dtype_of
from fusion_jax.runs.counts import check_enough, counts_table
from fusion_jax.runs.judging import (
    MEASURES,
    EvalSet,
    accuracy_table,
    answers_of,
    figure_rows,
    judged,
    paired_table,
    reward_sentence,
)
from fusion_jax.runs.plots import Curves, accuracy_figure, curves, training_figure
from fusion_jax.runs.provenance import Ran, answers_sentence, loss_sentence, write_report
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.trained import keep_adapter, trained
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.store.run_folder import RESULTS, RunFolder
from fusion_jax.teachers.settings import Teachers
from fusion_jax.train.objective import Objective
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for, compute_of_teachers
from fusion_jax.zoo import model_path

TRAINED_ON = "also trained on"


class Teacher(NamedTuple):
    """A model that reads texts, and where it is computed."""

    model: Model
    compute: Compute


@dataclass(frozen=True)
class Stage:
    """A training stage. name: its folder in the run. option: of its settings, for messages. settings, text: how it
    trains and reads its records. leaf: nothing else is made from what it trains. made_from: names of what it is
    made from; see `RunFolder.made_once`. read: how rows become examples, counted, where not by `make_examples`."""

    name: str
    option: str
    settings: TrainSettings
    text: TextSettings
    leaf: bool = False
    made_from: Sequence[str] | None = None
    read: Callable[[Sequence[Row], Model], tuple[list[Example], Counter[str]]] | None = None

    def examples(self, rows: Sequence[Row], model: Model) -> tuple[list[Example], Counter[str]]:
        """Rows in the model's tokens, and counts of what was cut or dropped."""
        if not rows:
            return [], Counter()
        return self.read(rows, model) if self.read else make_examples(rows, model.tokenizer, self.text)


@dataclass(frozen=True)
class Desk:
    """A run of one seed. counts: stage -> what it used and dropped; accuracy: rows of `evals.accuracy.by_skill`;
    results: names of the models that were exported or merged.

    whole: the desk of all seeds, where this is one of several.
    """

    run: RunFolder
    title: str
    ran: Ran
    whole: Desk | None = None
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    accuracy: list[dict[str, Any]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        settings = self.ran.settings
        return int(settings.seed if hasattr(settings, "seed") else settings.train.seed)

    @property
    def base(self) -> Desk:
        """The desk of what all seeds share."""
        return self.whole or self

    def counter(self, stage: str) -> Counter[str]:
        """What a stage used and dropped, to be added to."""
        return self.counts.setdefault(stage, Counter())

    def rows(
        self, stage: str, records: Sequence[Record], kind: str, *, file: str | None, on_bad: OnBad = "error"
    ) -> list[Row]:
        """Records of one kind ("quad", "pair", "sft") as rows; what is dropped is counted.

        Raises:
          InputError: a malformed record, where `on_bad` is "error".
        """
        rows, dropped = parse_rows(records, kind, file=file, on_bad=on_bad)
        self.counts[stage] = dropped + Counter({"used": len(rows)})
        return rows

    def records(
        self, name: str, make: Callable[[], Iterable[Record]], *, made_from: Sequence[str] | None = None
    ) -> list[Record]:
        """A file of records, made once; `made_from` as in `RunFolder.made_once`."""
        return self.run.stage(name, make, made_from=made_from)

    def check_enough(self, examples: int, settings: TrainSettings, option: str, counts: bool = True) -> None:
        """Refuse fewer examples than a batch, with what was dropped before."""
        check_enough(self.run, self.counts if counts else {}, examples, settings, option)

    def load(self, name: str | Path, settings: TrainSettings, weights: Weights = "stored") -> Model:
        """A model on the mesh of a stage."""
        with self.run.phase("loading"):
            return load(model_path(name), dtype=dtype_of(weights), mesh=compute_for(settings).mesh)

    def teacher(self, name: str | Path, settings: TrainSettings, weights: Weights, how: Teachers) -> Teacher:
        """A model that reads texts: on the mesh of a stage or, live, where that stage leaves devices to it."""
        if how == "stored" or not settings.mesh_spare:
            compute = compute_for(settings) if how == "stored" else compute_of_teachers(settings)
            return Teacher(self.load(name, settings, weights), compute)
        compute = compute_of_teachers(settings)
        with self.run.phase("loading"):
            return Teacher(load(model_path(name), dtype=dtype_of(weights), mesh=compute.mesh), compute)

    def target(self, name: str, settings: TrainSettings, tests: EvalSet, *, prompts: Sequence[str]) -> Model:
        """The model to improve on the mesh of a stage, judged before it learns from these prompts."""
        if not tests.prompts:
            self.run.log("no --test-prompts: accuracies are not measured")
        self.note_shared(tests.prompts, prompts)
        model = self.load(name, settings)
        self.judge("Target", model, tests)
        return model

    def note_shared(self, test: Sequence[Record], learnt: Iterable[str]) -> None:
        """Say how many test prompts are trained on as well: the accuracy on them is not that on unseen prompts."""
        shared = len({prompt["prompt"] for prompt in test} & set(learnt))
        if shared:
            self.counter("test prompts")[TRAINED_ON] += shared
            self.run.log(f"note: {shared} of {len(test)} test prompts are trained on, too: they are not unseen")

    def sampled(self, model: Model, name: str, prompts: Sequence[Record], how: SampleSettings) -> list[Record]:
        """Responses of one model, with progress on the screen."""
        with self.run.console.status(f"  sampling {name}") as status, self.run.phase("sampling"):

            def told(done: int) -> None:
                status.update(f"  sampling {name}: {done} of {len(prompts)} prompts")
                self.run.heartbeat(f"sampling {name}", done, len(prompts))

            return sample_responses(model, name, prompts, how, seed=self.seed, progress=told)

    def data(self, stage: Stage, model: Model, rows: Sequence[Row], *, held: bool = False) -> Data:
        """Rows as examples in the model's tokens, counted; held-out ones may be few.

        Raises:
          InputError: fewer examples than a batch.
        """
        examples, cut = stage.examples(rows, model)
        if held:
            self.counter(stage.name)["held out"] += len(examples)
            self.counts[f"{stage.name}, held out"] = cut
        else:
            self.counter(stage.name).update(cut)
            self.counts[stage.name]["used"] = cut["documents"] or len(examples)
            self.check_enough(len(examples), stage.settings, stage.option)
        packed = stage.text.packing != "none"
        return Data(examples, (lambda i: f"block {i}") if packed else (lambda i: rows[i].name))

    def train(
        self, stage: Stage, model: Model, objective: Objective, rows: Sequence[Row], held: Sequence[Row] = ()
    ) -> Model:
        """A model trained on rows in a folder of its own, or the finished one where it was trained already.

        Args:
          held: rows on which the objective is evaluated.
        """
        data, held_data = self.data(stage, model, rows), self.data(stage, model, held, held=True) if held else None
        return self.train_on(stage, model, objective, data, held_data)

    def train_on(self, stage: Stage, model: Model, objective: Objective, data: Data, held: Data | None = None) -> Model:
        """`train` on the data of `data`, which the caller may have added to."""
        settings = dataclasses.replace(stage.settings, seed=self.seed)
        return trained(
            self.run.sub(stage.name), model, compute_for(settings).mesh,
            lambda folder: optimise(model, data, objective, settings, folder, held=held),
            leaf=stage.leaf, made_from=stage.made_from,
        )  # fmt: skip

    def tune(
        self, stage: Stage, model: Model, objective: Objective, rows: Sequence[Row], held: Sequence[Row] = ()
    ) -> Model:
        """A model trained in the run's own folder, which is the run's result. As `train`."""
        data, held_data = self.data(stage, model, rows), self.data(stage, model, held, held=True) if held else None
        return self.tune_on(stage, model, objective, data, held_data)

    def tune_on(self, stage: Stage, model: Model, objective: Objective, data: Data, held: Data | None = None) -> Model:
        """`tune` on the data of `data`."""
        better = optimise(model, data, objective, stage.settings, self.run, held=held)
        self.export(better)
        return better

    def curves(self, *names: str) -> Curves:
        """Metrics that the run's own folder has logged."""
        return curves(self.run.path, names)

    def judge(
        self,
        name: str,
        model: Model | Callable[[], Model],
        tests: EvalSet,
        *,
        made_from: Sequence[str] | None = None,
    ) -> None:
        """Accuracy of a model's greedy answers on the test prompts, if there are any; `made_from` as in `made_once`.

        Args:
          model: or what loads it, which is called where the answers are not there yet.
        """
        self.accuracy.extend(judged(self.run, name, model, tests, made_from=made_from))

    def compared(
        self,
        name: str,
        stage: Stage,
        start: Model,
        objective: Objective,
        rows: Sequence[Row],
        held: Sequence[Row] = (),
        *,
        tests: EvalSet,
    ) -> None:
        """A model trained to be compared with the run's result: judged under `name`, nothing else is made from it."""
        model = self.train(dataclasses.replace(stage, leaf=True), start, objective, rows, held)
        self.judge(name, model, tests, made_from=[f"{stage.name}/model"])

    def export(self, model: Model, name: str = "model", *, made_from: Sequence[str] | None = None) -> None:
        """A result of the run, a Hugging Face folder; an adapter that was trained, also as a PEFT folder beside it."""
        with self.run.phase("saving"):
            self.run.made_once(name, lambda folder: save(model, folder), made_from=made_from)
            keep_adapter(self.run, model)
        self.results.append(name)

    def merged(self, method: str, recipe: Mapping[str, Any], *, made_from: Sequence[str]) -> Path:
        """merged/METHOD: the folder of the run's models `made_from` merged by a recipe."""
        from fusion_jax.merge import merge

        with self.run.timed(f"merging by {method}"):
            self.run.made_once(
                f"merged/{method}", lambda folder: on_first(lambda: merge(recipe, folder)), made_from=made_from
            )
        self.results.append(f"merged/{method}")
        return self.run.file(f"merged/{method}")

    def measures(self) -> Measures:
        """What was measured of every judged model."""
        rows = [row for row in self.accuracy if row["skill"] == "all"]
        return {row["model"]: {name: row[name] for name in MEASURES if name in row} for row in rows}

    def report(
        self, stages: Sequence[str], sources: Sequence[str], *, target: str, result: str, parts: Sequence[str] = ()
    ) -> None:
        """report.md: accuracy, curves, what the method adds, counts; the tables also on the screen.

        Args:
          stages: names of the training stages. sources: models that the target learned from. target: what it is called.
          result: one sentence for a run in which nothing was judged. parts: of the method.
        """
        self.run.on_first(lambda: self._write_report(stages, sources, target, result, parts))

    def report_tuning(self, name: str, result: str, final: Curves) -> None:
        """report.md and results.json of a run that trains one model in its own folder.

        Args:
          name: of what was trained. result: one sentence. final: curves whose ends are the results.
        """
        self.run.on_first(lambda: self._write_tuning(name, result, final))

    def report_pairs(self, name: str, told: str) -> None:
        """`report_tuning` of a training on the stage "pairs".

        Args:
          told: the result where pairs are held out, in which {share}, {low} and {high} stand for how many percent of
            the {held} ones are ranked rightly and its 95 % interval, {used} for the pairs trained on.
        """
        final = self.curves("loss", "eval_loss", "eval_rewards/margins", "eval_rewards/accuracies")
        used, held = self.counts["pairs"]["used"], self.counts["pairs"]["held out"]
        result = loss_sentence(final, used)
        if ranked := final.get("eval_rewards/accuracies"):
            low, high = wilson(ranked[1][-1] * held, held)
            shares = {"share": ranked[1][-1], "low": low, "high": high}
            result = told.format(used=used, held=held, **{what: 100 * share for what, share in shares.items()})
        self.report_tuning(name, result, final)

    def _write_tuning(self, name: str, result: str, final: Curves) -> None:
        ends = {metric: values[-1] for metric, (_, values) in final.items()}
        write_json(self.run.file(RESULTS), {name: {metric: [value] for metric, value in ends.items()}}, sort=False)
        picture = save_figure(training_figure({name: self.run.path}), self.run.file("training.png"))
        lines = [{"what": f"final {metric}", "value": f"{value:.4f}"} for metric, value in ends.items()]
        parts = [picture, markdown_table(lines), "## Records used, and dropped by reason", counts_table(self.counts)]
        write_report(self.run, self.title, result, self.ran, parts)
        self.run.log(result)
        self.run.log(f"report: {self.run.file('report.md')}; model: {self.run.file('model')}")

    def _write_report(
        self, stages: Sequence[str], sources: Sequence[str], target: str, result: str, parts: Sequence[str]
    ) -> None:
        run, shown = self.run, list[str]()
        if self.accuracy:
            table = markdown_table(accuracy_table(self.accuracy))
            own = [m for m in dict.fromkeys(r["model"] for r in self.accuracy) if m not in sources]
            answers = answers_of(run, own)
            told = [
                answers_sentence(
                    self.accuracy, target, sources, self.counts.get("test prompts", Counter())[TRAINED_ON]
                ),
                reward_sentence(answers),
            ]
            result = " ".join(filter(None, told))
            figure = save_figure(accuracy_figure(figure_rows(self.accuracy), sources), run.file("accuracy.png"))
            shown += ["## Accuracy of greedy answers, with 95 % Wilson intervals, and other measures", table, figure]
            run.log(table)
            shown += ["Differences on the same prompts (mean, 95 % interval):", paired_table(answers)]
        folders = {name: run.file(name) for name in stages if run.file(name).exists()}
        shown += ["## Training", save_figure(training_figure(folders), run.file("training.png")), *parts]
        shown += ["## Records used, and dropped by reason", counts_table(self.counts)]
        write_report(run, self.title, result, self.ran, shown)
        run.log(result)
        run.log(f"report: {run.file('report.md')}; model: {run.file('model')}")
