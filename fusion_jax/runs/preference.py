"""What fusions through preferences share: data from sources, an SFT stage, models trained on preferences and compared.

WRPO, FuseChat-3.0, InfiFPO and FuseRL differ in which responses they learn from and in their losses; the stages around
these are here, with what a command line may not ask for and what a plan computes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split, split_sizes
from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model
from fusion_jax.plan.parts import Part, Sampling, Training, every
from fusion_jax.plan.programs import Start
from fusion_jax.rewards import select
from fusion_jax.runs.checks import check_best_of, check_names, check_skipped, model_name
from fusion_jax.runs.counts import SHARED
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.domains import split_prompts
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.sources import Sources, SourceSettings, eval_set_of, source_parts
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings

BASIC = (
    "target", "sources", "prompts", "test_prompts", "responses", "out", "resume", "seed", "seeds", "reward_model",
    "verifier", "accuracy", "sample.num_samples", "text.tokens.max_length", "sft_share", "sft.epochs",
    "sft.optimizer.learning_rate", "preference.epochs", "preference.batch_size",
    "preference.optimizer.learning_rate",
)  # fmt: skip


@dataclass(frozen=True)
class PreferenceSettings(SourceSettings):
    """Sources and a target, and how it is trained on their responses, first by SFT, then on preferences."""

    sft_share: float = 1 / 3
    """Share of the prompts for SFT; the others are for preferences."""
    held_out: float = 0.1
    """Share of the preferences that is kept for evaluation."""
    text: TextSettings = TextSettings()
    sft: TrainSettings = TrainSettings()
    preference: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "sft_share", "held_out", least=0, below=1)
        check_best_of(self.sft, self.preference, "preference", self.held_out)


@dataclass(frozen=True)
class Begun:
    """A run whose prompts are known and whose target is loaded and judged.

    first, second: the prompts for SFT and for preferences. given: ready responses, if there are any.
    """

    settings: PreferenceSettings
    desk: Desk
    sources: Sources
    tests: EvalSet
    target: Model
    prompts: list[Record]
    first: list[Record]
    second: list[Record]
    given: list[Record]

    def responses(self) -> list[Record]:
        """Every source's responses to all prompts, with rewards."""
        return self.sources.responses(self.prompts, self.given)

    def to_first(self, responses: Sequence[Record]) -> list[Record]:
        """Those that answer a prompt for SFT."""
        return _to(responses, self.first)

    def to_second(self, responses: Sequence[Record]) -> list[Record]:
        """Those that answer a prompt for preferences."""
        return _to(responses, self.second)

    def taught(self, best: Mapping[str, Record], *, made_from: Sequence[str]) -> list[Record]:
        """sft.jsonl: the best responses to the prompts for SFT.

        Raises:
          InputError: there are prompts for SFT and no response to any of them.
        """
        records = self.desk.records(
            "sft.jsonl", lambda: [best[p["prompt_id"]] for p in self.first if p["prompt_id"] in best],
            made_from=["prompts.jsonl", *made_from],
        )  # fmt: skip
        if self.first and not records:
            self.desk.check_enough(0, self.settings.sft, "--sft")
        return records

    def tuned(self, best: Mapping[str, Record], *, made_from: Sequence[str]) -> Model:
        """The target after SFT on the best responses; as it is without prompts for SFT."""
        return tuned(self.settings, self.desk, self.target, self.taught(best, made_from=made_from), tests=self.tests)


@dataclass(frozen=True)
class Ready:
    """A run on ready preferences. start: the target, behind SFT on the user's records if there are any (`tuned`)."""

    start: Model
    rows: list[Row]
    tests: EvalSet
    tuned: bool


def ready(
    s: PreferenceSettings, desk: Desk, records: Sequence[Record], kind: str, *, file: str, stage: str, sft_data: str
) -> Ready:
    """What such a run begins with; all records are looked at before a model is loaded.

    Args:
      kind: of the records, see `data.records.parse_rows`; file: that they are from; stage: what counts are called.
      sft_data: file of records that the target learns first, or ""; those to prompts of the preferences are left out.
    """
    tests = eval_set_of(s, own_data=True)
    rows = desk.rows(stage, records, kind, file=file, on_bad=s.on_bad)
    desk.check_enough(trained_on(s, len(rows)), s.preference, "--preference")
    lessons = lessons_of(s, desk, load_records(sft_data), sft_data, beside=rows) if sft_data else []
    if sft_data and s.text.packing == "none":
        desk.check_enough(len(lessons), s.sft, "--sft")
    Sources(s, desk, tests, s.preference).check_prompts((), ())
    target = desk.target(s.target, s.preference, tests, prompts=[row.messages[-1]["content"] for row in rows])
    return Ready(after_sft(s, desk, target, lessons, tests=tests), rows, tests, bool(lessons))


REPEATED = "prompt: the same text under another id"


def _distinct(prompts: Sequence[Record], dropped: Counter[str]) -> list[Record]:
    """The prompts, each text once: under two ids it could be in both parts."""
    out: dict[str, Record] = {}
    for prompt in prompts:
        out.setdefault(prompt["prompt"].strip(), prompt)
    dropped[REPEATED] += len(prompts) - len(out)
    return list(out.values())


def _to(responses: Sequence[Record], prompts: Sequence[Record]) -> list[Record]:
    asked = {prompt["prompt_id"] for prompt in prompts}
    return [r for r in responses if r["prompt_id"] in asked]


def begin(
    s: PreferenceSettings, desk: Desk, *, target_asked: Sequence[str] = (), shares: Mapping[str, float] = {}
) -> Begun:
    """Prompts, their two parts, the target.

    Args:
      target_asked: which of the parts "first" and "second" the target itself is asked.
      shares: for SFT, of the prompts of some domains; the others are split by `sft_share`.

    Raises:
      InputError: too few prompts for a batch of either stage, or prompts that leave a model no room for an answer.
    """
    tests = eval_set_of(s, own_data=bool(s.prompts or s.responses))
    sources = Sources(s, desk, tests, s.preference)
    given = sources.given()
    prompts = desk.records(
        "prompts.jsonl", lambda: _enough(s, desk, sources.prompts(given, target_asked=bool(target_asked)), shares)
    )
    prompts = _distinct(prompts, desk.counter("prompts"))
    first, second = split_prompts(prompts, s.sft_share, shares, s.seed)
    parts = {"first": first, "second": second}
    sources.check_prompts(prompts, [prompt for name in target_asked for prompt in parts[name]])
    target = desk.target(s.target, s.preference, tests, prompts=[prompt["prompt"] for prompt in prompts])
    return Begun(s, desk, sources, tests, target, prompts, first, second, given)


def _enough(s: PreferenceSettings, desk: Desk, prompts: list[Record], shares: Mapping[str, float]) -> list[Record]:
    """The prompts, if they are enough for both stages."""
    first, second = map(len, split_prompts(prompts, s.sft_share, shares, s.seed))
    if first and s.text.packing == "none":
        desk.check_enough(first, s.sft, "--sft", counts=False)
    desk.check_enough(trained_on(s, second), s.preference, "--preference", counts=False)
    return prompts


def trained_on(s: PreferenceSettings, preferences: int) -> int:
    """How many of the preferences are not held out."""
    return split_sizes(preferences, s.held_out)[1]


def held_and_trained(s: PreferenceSettings, desk: Desk, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Preferences to evaluate on and those to train on, if these are enough."""
    held, train = split(rows, s.held_out, s.seed)
    desk.check_enough(len(train), s.preference, "--preference")
    return held, train


def lessons_of(
    s: PreferenceSettings, desk: Desk, taught: Sequence[Record], file: str, *, beside: Sequence[Row] = ()
) -> list[Row]:
    """Records for SFT as rows, without those to conversations of the preferences `beside`, which are counted."""
    rows, preferred = desk.rows("sft", taught, "sft", file=file, on_bad=s.on_bad), {_asked(row) for row in beside}
    kept = [row for row in rows if _asked(row) not in preferred]
    desk.counts["sft"].update({SHARED: len(rows) - len(kept), "used": len(kept) - len(rows)})
    return kept


def tuned(s: PreferenceSettings, desk: Desk, target: Model, taught: Sequence[Record], *, tests: EvalSet) -> Model:
    """The target after SFT on the records of sft.jsonl; as it is without any."""
    return after_sft(s, desk, target, lessons_of(s, desk, taught, "sft.jsonl") if taught else [], tests=tests)


def after_sft(s: PreferenceSettings, desk: Desk, target: Model, lessons: Sequence[Row], *, tests: EvalSet) -> Model:
    """The target after SFT on these rows, judged; as it is without any."""
    if not lessons:
        return target
    model = desk.train(Stage("sft", "--sft", s.sft, s.text), target, objectives.sft(), lessons)
    desk.judge("SFT", model, tests)
    return model


def _asked(row: Row) -> tuple[str, ...]:
    return tuple(message["content"].strip() for message in row.messages)


def preference_stage(s: PreferenceSettings, name: str, *, leaf: bool = False) -> Stage:
    """A training on preferences; packing is for SFT alone."""
    return Stage(name, "--preference", s.preference, dataclasses.replace(s.text, packing="none"), leaf=leaf)


def compared(
    desk: Desk,
    name: str,
    stage: Stage,
    start: Model,
    objective: Objective,
    rows: Sequence[Row],
    held: Sequence[Row] = (),
    *,
    tests: EvalSet,
) -> None:
    """A model trained to be compared with the run's result: judged under `name`, made once, nothing is made from it."""
    leaf = dataclasses.replace(stage, leaf=True)
    desk.judge(name, desk.train(leaf, start, objective, rows, held), tests, made_from=[f"{stage.name}/model"])


def compared_with_dpo(
    s: PreferenceSettings,
    desk: Desk,
    name: str,
    start: Model,
    dpo: PairSettings,
    rows: Sequence[Row],
    held: Sequence[Row],
    *,
    tests: EvalSet,
) -> None:
    """DPO on the last two responses of the same rows, to compare."""
    stage, objective = preference_stage(s, "dpo"), objectives.pair(dpo)
    compared(desk, name, stage, start, objective, last_two(rows), last_two(held), tests=tests)


def result(
    desk: Desk,
    name: str,
    stage: Stage,
    start: Model,
    objective: Objective,
    rows: Sequence[Row],
    held: Sequence[Row],
    *,
    tests: EvalSet,
) -> None:
    """The model that the run is for: trained on preferences, judged under `name`, exported."""
    fused = desk.train(stage, start, objective, rows, held)
    desk.judge(name, fused, tests)
    desk.export(fused, made_from=[f"{stage.name}/model"])


def last_two(rows: Sequence[Row]) -> list[Row]:
    """The rows as plain pairs, of their last two responses: of a quadruple the target's own."""
    return [Row(row.name, row.messages, row.responses[-2:]) for row in rows]


def wins(best: Mapping[str, Record]) -> list[str]:
    """Who wrote the best source response, for the report."""
    shares = [{"source": name, "share": f"{share:.3f}"} for name, share in select.wins(best).items()]
    return ["## Who wrote the best source response", markdown_table(shares)] if shares else []


def reported(
    s: PreferenceSettings, desk: Desk, stages: Sequence[str], *, what: str, parts: Sequence[str] = ()
) -> Measures:
    """report.md, and what was measured of every model.

    Args:
      stages: names of the training stages, the last one that of the result. what: it is trained on, for a run in which
        nothing is judged.
    """
    used, sources = desk.counts[stages[-1]]["used"], [model_name(source) for source in s.sources]
    result = f"The model is trained on {used} {what}; without --test-prompts nothing is judged."
    desk.report(stages, sources, target="Target", result=result, parts=parts)
    return desk.measures()


def check_begin(
    s: PreferenceSettings,
    names: Sequence[str],
    *,
    ready: tuple[str, str] = ("", ""),
    skipped: Mapping[str, object] = {},
    sft_data: str = "",
) -> None:
    """Refuse options that do not go together with where a run begins.

    Args:
      names: what the report calls the run's own models; no source that is asked may be called so.
      ready: the option of ready preferences, without its dashes, and the file. skipped: what else they skip, see
        `check_skipped`. sft_data: file of records for SFT, which only a run on ready preferences takes.
    """
    option, file = ready
    if file:
        always = {"responses": s.responses, "prompts": s.prompts, "reward-model": s.reward_model}
        check_skipped({**always, **skipped}, f"--{option}")
    elif sft_data:
        problem = f"belongs to --{option}; else SFT learns the best source responses"
        cure = f"Leave it out, give --{option}, or train on it first with experiments/sft.py"
        raise InputError(problem, field="--sft-data", cure=cure)
    if not (file or s.responses):
        check_names(s.sources, names)


def planned(
    s: PreferenceSettings,
    title: str,
    objective: Objective,
    *,
    ready: str = "",
    sft_data: str = "",
    sft: Objective | None = None,
    asked: SampleSettings | None = None,
) -> tuple[Training, *tuple[Part, ...]]:
    """What a run computes: the training on preferences, then what comes before it. What is trained to compare takes no
    more, nor the sources' sampling.

    Args:
      title, objective: of the training on preferences. ready: file of ready ones, before which only SFT on `sft_data`
        is left. sft: the objective of the first stage, where it is not plain SFT. asked: how the target is sampled on
        the prompts for preferences.
    """
    share = 0.0 if ready else s.sft_share
    start: Start = "float32" if share or sft_data else "bfloat16"  # of weights behind a training, of a folder's
    last = Training(
        title, s.target, objective, s.preference, s.text.tokens.max_length, "--preference", start=start,
        records=lambda prompts: trained_on(s, split_sizes(prompts, share)[1]),
    )  # fmt: skip
    if ready:
        return (last, sft_part(s, every, objectives.sft())) if sft_data else (last,)
    out = list[Part]()
    if share:
        out.append(sft_part(s, lambda prompts: split_sizes(prompts, share)[0], sft or objectives.sft()))
    out += source_parts(s, s.preference, "--preference")
    if asked is not None:
        second = lambda prompts: split_sizes(prompts, share)[1]  # noqa: E731
        out.append(Sampling("sampling the target", s.target, asked, records=second, kept=start))
    return last, *out


def sft_part(s: PreferenceSettings, records: Callable[[int], int], objective: Objective) -> Training:
    """The SFT stage."""
    return Training(
        "SFT", s.target, objective, s.sft, s.text.tokens.max_length, "--sft", packing=s.text.packing, records=records
    )  # fmt: skip
