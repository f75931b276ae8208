"""The stages of a run that prunes: the text that judges, the search step by step, other orders beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.loaders import load_texts
from fusion_jax.data.records import parse_rows
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.json_files import read_json
from fusion_jax.jsonl import Record
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import Model, check_folder, tokenizer_of
from fusion_jax.models.json_files import read_config
from fusion_jax.options import Called, File, ModelPath, OneOf
from fusion_jax.plan.compile import check_compiler
from fusion_jax.prune.blocks import Block, Blocks, Unit, candidates, ratio
from fusion_jax.prune.calibration import calibration_rows, chat_text, cut, drawn, scored_tokens
from fusion_jax.prune.export import Form, check_served, served
from fusion_jax.prune.nemotron import from_llama
from fusion_jax.prune.orders import ORDERS, SLACK, Point, baseline, curve
from fusion_jax.prune.scoring import How, Text, score
from fusion_jax.prune.search import Scorer, Step, finite, from_official, from_record, removed_by, search, to_record
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.judging import EvalSet, judged
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.runs.prompts import eval_set, held_out_skills
from fusion_jax.runs.pruned import told
from fusion_jax.sampling.generate import decoding_mesh, generate
from fusion_jax.settings import bounded
from fusion_jax.slices import slice_of
from fusion_jax.train.settings import TrainSettings, compute_to_read
from fusion_jax.zoo import model_path
from fusion_jax.zoo.problems import Problems, problems
from fusion_jax.zoo.tasks import SKILLS

OrderName = Annotated[str, OneOf(tuple(ORDERS), tuple(ORDERS.values()))]
READ = ("mesh_data", "mesh_fsdp", "mesh_tensor", "compute_dtype", "attention")
"""Settings of `train` that a run obeys which trains nothing."""


@dataclass(frozen=True)
class PruningSettings(EvaluatedSettings, JudgedSettings):
    """A model, the text that judges its blocks, how many go, and what that is compared with."""

    model: ModelPath = "zoo:deep"
    """Model to prune: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    calibration: File = ""
    """Texts that judge the blocks: JSON lines with "text", plain lines, hf:NAME; without, the model's own greedy
    answers to problems of the zoo's skills, of which only the answers count."""
    documents: int = 0
    """How many of the texts judge, drawn by the seed (of Alpaca's 52,002 those of the published searches); 0: all."""
    calibration_tokens: int = 0
    """How many scored tokens judge the blocks at most, in whole rows; 0: all."""
    held_out_texts: File = ""
    """Texts whose perplexity is compared; without, beside own texts, no perplexity is."""
    length: int = 2048
    """Tokens of a row of texts."""
    problems: int = 20
    """Without texts: the zoo's problems of each skill that judge, and as many others whose perplexity is compared."""
    judged_by: Problems = "skills"
    """Which of the zoo's problems the model answers to judge the blocks; compared are always skills."""
    blocks: int = 0
    """How many removals the search makes; 0: as many as `ratio` needs or, without it, a half of those there are."""
    ratio: float = 0.0
    """Share of the parameters that are gone at least when the search ends; 0: it ends after `blocks`."""
    unit: Unit = "mix"
    """What a removal takes: a block of either kind (mix), an attention (mha), a feed-forward (mlp), a whole layer."""
    removed: File = ""
    """removed.json of a search, ours or the official program's, in the place of a search; `blocks` or `ratio` then say
    how much of it is taken, without them all."""
    form: Form = "hf"
    """What model/ is: a folder of the model's own architecture for every program (hf: layers without blocks are gone,
    zeros elsewhere), the same without zeros for fusion_jax alone (native), or Nemotron-NAS (docs/folders.md)."""
    decode_on: Annotated[str, Called("SLICE")] = ""
    """A TPU slice, such as v5e-8: the report then has what decoding takes there, whole and pruned, by the TPU compiler
    (see --plan)."""
    compared: tuple[OrderName, ...] = tuple(ORDERS)
    """Orders that the search is compared with on the held-out text and the test prompts."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Shares of the parameters at which they are compared, beside the pruned model's own."""
    rows: int = 8
    """Rows of text at once."""
    states: int = 4
    """Candidates that go through a layer at once, each with so many rows."""
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "documents", "calibration_tokens", "blocks", least=0)
        bounded(self, "length", least=2)
        bounded(self, "problems", "rows", "states", least=1)
        bounded(self, "ratio", least=0, below=1)
        for share in self.shares:
            if not 0 < share < 1:
                raise InputError(f"{share} is out of range", field="shares", cure="Give shares between 0 and 1")

    @property
    def own_texts(self) -> bool:
        """Whether texts are the user's, none the model's own answers."""
        return bool(self.calibration or self.held_out_texts)

    @property
    def how(self) -> How:
        """How text goes through the layers: on the mesh of `train`."""
        return How(compute_to_read(self.train), self.rows, self.states)


def check(s: PruningSettings, presets: Mapping[str, PruningSettings]) -> None:
    """Refuse, by config.json alone, what cannot be reached, and options that would do nothing."""
    config = check_folder(model_path(s.model))
    every = candidates(config, (), s.unit)
    check_served(config, {Block("attention", 0)})
    if s.form.startswith("nemotron"):
        from_llama(config)
    if s.decode_on:
        slice_of(s.decode_on)
        check_compiler("--decode-on")
    if s.blocks and s.ratio:
        raise InputError("stands beside --blocks", field="--ratio", cure="Leave one of the two out")
    if s.removed:
        taken(s, config, official(s, config))
    else:
        _check_reach(s, config, every)
    _check_texts(s)
    idle: dict[str, Sequence[str]] = {}
    if s.own_texts:
        idle["a run with texts of your own"] = ("problems", "judged_by", "test_per_skill")
    else:
        idle["a run without texts of your own"] = ("length",)
    if not s.calibration:
        idle["a run without --calibration"] = ("documents",)
    if s.removed:
        idle["--removed, which takes the place of a search"] = ("unit",)
    if s.own_texts and not s.held_out_texts and not s.test_prompts:
        idle["a run without --held-out-texts and --test-prompts"] = ("compared", "shares")
    if s.own_texts and not s.test_prompts:
        idle["a run without --test-prompts"] = ("accuracy",)
    for why, names in idle.items():
        refuse_idle(s, presets, names, why)


def _check_texts(s: PruningSettings) -> None:
    judges = not s.removed or bool(s.compared)
    if s.held_out_texts and judges and not s.calibration:
        problem, cure = "is missing beside --held-out-texts", "Give texts that judge the blocks"
        raise InputError(problem, field="--calibration", cure=cure)
    if s.calibration and not judges:
        problem = "judges nothing where a search is given and no order is compared"
        raise InputError(problem, field="--calibration", cure="Leave it out, or give --compared")


def refuse_idle(s: Any, presets: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Refuse settings that do nothing where they are no preset's.

    Raises:
      InputError: names the first.
    """
    for name in names:
        if getattr(s, name) not in [getattr(preset, name) for preset in presets.values()]:
            raise InputError(f"does nothing in {why}", field=f"--{name.replace('_', '-')}", cure="Leave it out")


def _check_reach(s: PruningSettings, config: ModelConfig, every: Sequence[Blocks]) -> None:
    whole = s.unit in ("mix", "layer")
    most = len(every) - whole
    if s.blocks > most:
        left = ", one of which has to stay" if whole else ""
        problem = f"{s.blocks} removals are more than can be made: there are {len(every)}{left}"
        raise InputError(problem, field="--blocks", cure=f"Give {most} or less")
    shares = [ratio(config, blocks) for blocks in every]
    reached = sum(shares) - (max(shares) if whole else 0.0)
    if s.ratio > reached + SLACK:
        problem = f"{s.ratio:g} of the parameters cannot be removed by --unit {s.unit}, which holds {sum(shares):.4f}"
        raise InputError(problem, field="--ratio", cure=f"Give {int(1e4 * reached) / 1e4:g} or less")


def official(s: PruningSettings, config: ModelConfig) -> list[Blocks]:
    """What each step of the file of `removed` takes."""
    found = from_official(read_json(s.removed, dict), config, s.removed)
    if not found:
        raise InputError("holds no step", file=s.removed, field="--removed", cure="Give the file of a search")
    return found


def taken(s: PruningSettings, config: ModelConfig, order: Sequence[Blocks]) -> int:
    """How many of the steps of a search make the pruned model; 0: it has to go on.

    Raises:
      InputError: the file of `removed` has not so many.
    """
    sets = [frozenset[Block]().union(*order[:number]) for number in range(1, len(order) + 1)]
    if s.ratio:
        found = next((n for n, gone in enumerate(sets, 1) if ratio(config, gone) >= s.ratio - SLACK), 0)
    else:
        wanted = s.blocks or (len(order) if s.removed else removals(s, config))
        found = wanted if len(order) >= wanted else 0
    if s.removed and not found:
        has = f"the {len(order)} steps of the file take {ratio(config, sets[-1]):.4f} of the parameters"
        raise InputError(has, file=s.removed, field="--ratio" if s.ratio else "--blocks", cure="Lower it")
    if s.removed:
        check_served(config, sets[found - 1])
    return found


def removals(s: PruningSettings, config: ModelConfig) -> int:
    """How many removals a search makes; where a share ends it, as many as blocks of the mean size need."""
    every = candidates(config, (), s.unit)
    if s.ratio:
        mean = sum(ratio(config, blocks) for blocks in every) / len(every)
        return min(max(round(s.ratio / mean), 1), len(every))
    return s.blocks or max(len(every) // 2, 1)


@dataclass(frozen=True)
class Judges:
    """calibration: what judges the blocks, None where nothing is to be judged; unseen: what orders are compared on;
    tests: prompts for accuracy."""

    calibration: Text | None
    unseen: Text | None
    tests: EvalSet


def given_texts(s: PruningSettings, desk: Desk) -> Judges:
    """The user's texts in rows, before any weights are loaded."""
    folder = model_path(s.model)
    config, tokenizer = check_folder(folder), tokenizer_of(folder)
    length = min(s.length, config.max_positions)
    if length < s.length:
        desk.run.log(f"rows have {length} tokens instead of {s.length}: the model reads no more")
    # As the official program: no id for padding, or 0, ignores nothing.
    ignored = read_config(folder).get("pad_token_id")

    def rows(texts: Sequence[str]) -> Text:
        return Text(calibration_rows(texts, tokenizer, length), ignored or None)

    def some() -> list[Record]:
        return [{"text": text} for text in drawn(load_texts(s.calibration), s.documents, s.seed)]

    own = None
    if s.calibration:
        texts = desk.records("calibration.jsonl", some)
        own = cut(rows([record["text"] for record in texts]), s.calibration_tokens)
        desk.run.log(f"calibration: {len(texts)} documents, {len(own.rows)} rows of {length} tokens")
    unseen = rows(load_texts(s.held_out_texts)) if s.held_out_texts else None
    return Judges(own, unseen, eval_set(s, []))


def own_answers(s: PruningSettings, desk: Desk, model: Model) -> Judges:
    """The model's own greedy answers to problems of the zoo's skills, kept in the run."""
    most = model.config.max_positions
    tokens = TokeniseSettings(max_length=most, max_prompt_length=most - 1, eos="if_missing")

    def text(name: str, split: str, kind: Problems) -> Text:
        records = desk.records(name, lambda: answers_to(s, desk, model, kind, split, s.problems))
        return chat_text(make_examples(parse_rows(records, "sft")[0], model.tokenizer, TextSettings(tokens=tokens))[0])

    calibration = cut(text("calibration.jsonl", "train", s.judged_by), s.calibration_tokens)
    desk.run.log(f"calibration: {len(calibration.rows)} answers, {scored_tokens(calibration)} tokens")
    tests = eval_set(s, held_out_skills(s))
    return Judges(calibration, text("held_out.jsonl", "test", "skills"), tests)


def answers_to(
    s: PruningSettings, desk: Desk, model: Model, kind: Problems, split: str, per_skill: int, shift: int = 0
) -> list[Record]:
    """A model's own greedy answers to the zoo's problems, as many of plants as of all skills; shift: of the seed.

    Raises:
      InputError: it answers nothing.
    """
    count = per_skill * (len(SKILLS) if kind == "plants" else 1)
    asked = [p["prompt"] for p in problems(kind, count, split=split, seed=s.seed + 1000 * shift)]
    with desk.run.phase("sampling"):
        mesh = decoding_mesh(model.config)
        found = generate(model, asked, max_new_tokens=s.eval_new_tokens, batch_size=64, mesh=mesh)
    answers = [texts[0].strip() for texts in found]
    out = [{"prompt": p, "response": a} for p, a in zip(asked, answers, strict=True) if a]
    if not out:
        raise InputError("the model answers nothing", file=s.model, field="--model", cure="Give --calibration")
    return out


def searched(s: PruningSettings, desk: Desk, config: ModelConfig, scorer: Scorer | None) -> list[Step]:
    """The steps that make the pruned model: those of `removed`, or of a search whose steps are a file each, so that a
    search that was killed goes on behind its last whole one.

    Raises:
      InputError: a share is to be reached, and no candidate has a finite perplexity any more.
    """
    if scorer is None or s.removed:
        order = official(s, config)
        return [Step(blocks, float("nan")) for blocks in order[: taken(s, config, order)]]
    steps: list[Step] = []
    while not taken(s, config, [step.chosen for step in steps]):
        number = len(steps) + 1
        ahead = search(scorer, config, number, s.unit, done=steps)
        (record,) = desk.records(f"search/{number:03}.jsonl", partial(_next, ahead))
        steps.append(from_record(record))
        desk.run.log(f"step {number}: {told(steps[-1].chosen)}, perplexity {steps[-1].perplexity:.4f}")
        if s.ratio and not steps[-1].chosen:
            problem = f"no candidate of step {number} has a finite perplexity"
            raise InputError(problem, field="--ratio", cure="Lower it, or compute in float32 (--train.compute-dtype)")
    return steps


def _next(ahead: Iterator[Step]) -> list[Record]:
    return [to_record(next(ahead))]


@dataclass(frozen=True)
class Comparing:
    """What compares orders. most: the share of the parameters up to which; shares: those at which models answer."""

    desk: Desk
    model: Model
    judges: Judges
    how: How
    most: float
    shares: Sequence[float]

    def points(self, name: str, order: Iterable[Blocks]) -> list[Record]:
        """{"order", "removals", "blocks", "ratio", "perplexity", "accuracy"} of each point of an order's curve, which
        is a file of the run; what was not measured or is not finite is None."""
        kept = self.desk.records(f"curves/{name}.jsonl", lambda: self._measured(name, order))
        accuracies = dict(self._accuracies(name, kept))
        return [record | {"accuracy": accuracies.get(record["removals"])} for record in kept]

    def _measured(self, name: str, order: Iterable[Blocks]) -> Iterator[Record]:
        for number, point in enumerate(curve(self.model, self.judges.unseen, order, self.how, self.most)):
            yield {"order": name, "removals": number, **_plain(point)}

    def _accuracies(self, name: str, kept: Sequence[Record]) -> Iterator[tuple[int, float]]:
        """Of the models that lack at most each of the shares, and of the last one that lacks at most `most`."""
        wanted = [*(share for share in self.shares if share < self.most - SLACK), self.most]
        fitting = [[r["removals"] for r in kept if r["ratio"] <= share + SLACK] for share in wanted]
        for number in dict.fromkeys([0, *(some[-1] for some in fitting)]):
            gone = frozenset(Block(*one) for one in kept[number]["blocks"])
            called, source = (f"{name}-{number}", [f"curves/{name}.jsonl"]) if number else ("whole", [])
            made = partial(served, self.model, gone)
            rows = judged(self.desk.run, called, made, self.judges.tests, made_from=source)
            if rows:
                yield number, next(row["accuracy"] for row in rows if row["skill"] == "all")


def _plain(point: Point) -> Record:
    value = None if point.perplexity is None else finite(point.perplexity)
    return {"blocks": sorted(map(list, point.blocks)), "ratio": point.ratio, "perplexity": value}


def compared(
    s: PruningSettings, desk: Desk, model: Model, judges: Judges, scorer: Scorer | None, steps: Sequence[Step]
) -> dict[str, list[Record]]:
    """The curves of the orders and, last, of the search; none where there is nothing to compare on."""
    if judges.unseen is None and not judges.tests.prompts:
        return {}
    comparing = Comparing(desk, model, judges, s.how, ratio(model.config, removed_by(steps)), s.shares)
    found = {}
    if judges.calibration is not None and scorer is not None:
        order = baseline(model, judges.calibration, scorer, s.how, s.seed)
        found = {name: comparing.points(name, order(name)) for name in s.compared}
    return found | {"search": comparing.points("search", [step.chosen for step in steps])}


def scorer_of(s: PruningSettings, model: Model, text: Text | None) -> Scorer | None:
    """What the search asks."""
    return None if text is None else partial(score, model.params, model.config, text, how=s.how)


def reading(train: TrainSettings) -> TrainSettings:
    """Settings of a training with those of `READ` as they are by default, to be compared with a preset's."""
    return dataclasses.replace(train, **{name: getattr(TrainSettings(), name) for name in READ})
