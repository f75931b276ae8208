"""Which source is best on each instruction, in both modes: right answers read, own answers written, judges that vote.

Stages S0 to S4 of ProFuser (arXiv 2408.04998, section 3 of its specification); each is a file of records or a store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from fusion_jax.align.settings import AlignSettings
from fusion_jax.data.asked import check_answers
from fusion_jax.data.documents import Document, chat_documents, token_counts
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad, Row, parse_rows
from fusion_jax.errors import InputError
from fusion_jax.evals.perplexity import surprise
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model, check_folder, tokenizer_of
from fusion_jax.models.int8 import Weights
from fusion_jax.options import Called, File, ModelKind, ModelPath, Models, OneOf
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.rewards.verifiers import VERIFIERS, verifier
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evolving import drafted
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.runs.prompts import eval_set
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings, load_to_sample
from fusion_jax.settings import bounded
from fusion_jax.teachers.advantage import ByReading, ByWriting, by_reading, by_writing, vote
from fusion_jax.teachers.documents import Reading, read_documents
from fusion_jax.teachers.opinions import Reach
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.targets import metrics_of
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.zoo import model_path
from fusion_jax.zoo.problems import Problems, problems
from fusion_jax.zoo.tasks import in_style

Judges = Annotated[tuple[str, ...], Called("MODEL"), ModelKind(1)]
Rule = Annotated[str, OneOf(tuple(VERIFIERS))]
PREFIXES = AlignSettings(
    tokens="prefix", vocabulary="mined", duplicates="logsumexp", fallback="drop", least_mass=0.5
)  # fmt: skip


@dataclass(frozen=True)
class AdvantageSettings(JudgedSettings):
    """A target, sources, instructions with right answers, and who judges."""

    target: ModelPath = "zoo:plants-target"
    """Model to improve, which is itself a source: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    sources: Models = ("zoo:plants-llama", "zoo:plants-qwen", "zoo:plants-gemma")
    """Models to learn from: folders, or zoo:NAME."""
    source_weights: Weights = "stored"
    """How the layers' matrices of the sources are held: as their files have them (stored), or rounded to int8."""
    instructions: File = ""
    """JSON lines with "prompt" and "response", the right answer, and for a verifier "answer"; without, the zoo's
    problems."""
    held_out_instructions: File = ""
    """Instructions on whose right answers bits per byte are measured; without, the zoo's."""
    eval_samples: int = 0
    """Test answers sampled to each prompt with temperature 0.8, for their mean reward; 0: the greedy one only."""
    problems: Problems = "plants"
    """The zoo's problems, which stand in for instructions that are not given. Its judges know plants; skills need
    --judges none --verifiers answer."""
    zoo_instructions: int = 640
    """The zoo's problems of each skill to learn from; plants are one skill."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    judges: Judges = ("zoo:plants-judge-llama", "zoo:plants-judge-qwen", "zoo:plants-judge-gemma")
    """Reward models that vote on the sources' own answers."""
    verifiers: tuple[Rule, ...] = ()
    """Rules that vote beside the judges."""
    by_reading: ByReading = "min_ce"
    """Whose distributions teach the right answer: of the source that it surprises least (min_ce), most, or any."""
    ce_norm: Literal["token", "byte"] = "token"
    """What a source's surprise is divided by: its own tokens, as published, or bytes."""
    by_writing: ByWriting = "vote"
    """Whose own answer teaches: the judges' vote, their mean z-score, the first judge alone, or any."""
    longest: float = 0.0
    """An answer that is longer than this many times the median of its prompt's may not win; 0: any length may."""
    max_length: int = 2048
    """Tokens that models read; instructions that are longer with their answer are left out and counted."""
    k: int = 10
    """Entries that are kept of a source's distribution."""
    teacher_batch: int = 8
    """Texts at once while sources read."""
    teacher_temperature: float = 1.0
    """Temperature of the sources' distributions."""
    least_coverage: float = 0.6
    """Share of a source's tokens that has to reach the target's; less is an error."""
    sample: SampleSettings = SampleSettings(temperature=0.7, top_p=0.9, num_samples=1, max_new_tokens=512)
    align: AlignSettings = PREFIXES
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "zoo_instructions", "k", "teacher_batch", least=1)
        bounded(self, "max_length", least=2)
        bounded(self, "longest", "eval_samples", least=0)
        bounded(self, "least_coverage", least=0, most=1)
        bounded(self, "teacher_temperature", above=0)
        if self.sample.num_samples != 1:
            cure = "Leave it at 1"
            raise InputError("a source answers an instruction once", field="sample.num_samples", cure=cure)
        if not (self.judges or self.verifiers):
            raise InputError("nobody votes", field="judges", cure="Give reward models, or --verifiers")

    @property
    def fusion(self) -> FusionSettings:
        """How a source's rows become targets."""
        metric: Literal["ce", "bits_per_byte"] = "bits_per_byte" if self.ce_norm == "byte" else "ce"
        return FusionSettings(kind="kl", metric=metric, temperature=self.teacher_temperature)


@dataclass(frozen=True)
class Panel:
    """The target and its sources at a desk, by name, the target first. limit: tokens that all of them read.

    held_out: instructions with right answers, of which bits per byte are measured; bits: so far, by model. reached:
    how much of each source reached the target's tokens, by mode and name, so far.
    """

    settings: AdvantageSettings
    desk: Desk
    folders: Mapping[str, Path]
    limit: int
    tests: EvalSet
    held_out: Sequence[Record] = ()
    bits: dict[str, float] = field(default_factory=dict)
    reached: dict[tuple[str, str], Reach] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of all sources, the target first."""
        return list(self.folders)

    def load(self, name: str) -> Model:
        """A model on the mesh of training."""
        weights: Weights = "stored" if name == self.names[0] else self.settings.source_weights
        return self.desk.load(self.folders[name], self.settings.train, weights)

    def documents(self, records: Sequence[Record]) -> dict[str, list[Document]]:
        """Prompts with their responses as each model reads them, in its own template."""
        rows = [Row(r["prompt_id"], ({"role": "user", "content": r["prompt"]},), (r["response"],)) for r in records]
        readers = {name: tokenizer_of(folder) for name, folder in self.folders.items()}
        return {name: chat_documents(rows, reader, reader) for name, reader in readers.items()}

    def fitting(self, records: Sequence[Record], stage: str) -> list[int]:
        """Which of them all models read whole; the others are counted."""
        found = self.documents(records)
        lengths = [token_counts(tokenizer_of(self.folders[name]), some) for name, some in found.items()]
        kept = np.max(lengths, axis=0) <= self.limit
        self.desk.counter(stage).update({"used": int(kept.sum()), "longer than max_length": int((~kept).sum())})
        return np.flatnonzero(kept).tolist()

    def note_reach(self, mode: str, name: str, reach: Reach) -> None:
        """Keep how much of a source's distributions reached the target's tokens, and refuse too little."""
        self.reached[mode, name] = reach
        reached = 1.0 - reach.rules["fallback"] - reach.rules["empty"]
        if reached < self.settings.least_coverage:
            raise InputError(
                f"only {100 * reached:.0f} % of the target's tokens get a row of '{name}' in {mode} mode",
                file=self.folders[name], field="least_coverage",
                cure="Look for another word boundary or template, leave the source out, or lower it",
            )  # fmt: skip

    def read(self, name: str, folder: str, documents: Sequence[Document]) -> Reading:
        """A model's distributions on documents, stored once (S1, S5)."""
        s, run = self.settings, self.desk.run
        with run.timed(f"reading {folder}, {name}"):
            return read_documents(
                run.sub(folder).file(name), name, self.load(name), documents, k=s.k, max_length=self.limit,
                compute=compute_for(s.train), batch_size=s.teacher_batch, progress=run.progress,
            )  # fmt: skip

    def measure(self, name: str, model: Model) -> None:
        """Accuracy on the test prompts, and bits per byte of held-out right answers, where there are any."""
        self.desk.judge(name, model, self.tests, made_from=[])
        if self.held_out:
            documents = self.documents(self.held_out)[self.names[0]]
            with self.desk.run.phase("judging"):
                read = surprise(model, documents, max_length=self.limit, compute=compute_for(self.settings.train))
            self.bits[name] = read.bits_per_byte

    def report(self, arms: Sequence[str], tables: Sequence[str]) -> Measures:
        """report.md, and what was measured of each model."""
        measures: Measures = {name: dict(values) for name, values in self.desk.measures().items()}
        for name, bits in self.bits.items():
            measures.setdefault(name, {})["bits per byte"] = bits
        lines = [{"model": name, "bits per byte": f"{bits:.4f}"} for name, bits in self.bits.items()]
        parts = ["## Bits per byte of held-out right answers", markdown_table(lines)] if lines else []
        self.desk.report(
            [f"arms/{name}" for name in arms], self.names[1:], target=self.names[0],
            result=f"Trained {', '.join(arms)}; nothing was judged.", parts=[*parts, *tables],
        )  # fmt: skip
        return measures

    def written(self, name: str, instructions: Sequence[Record]) -> list[Record]:
        """A model's own answer to each instruction (S2): {"prompt_id", "text", "finished", "n_tok"}."""
        s = self.settings

        def answers() -> list[Record]:
            weights: Weights = "stored" if name == self.names[0] else s.source_weights
            model = load_to_sample(self.folders[name], s.sample.mesh_tensor, "--sample.mesh-tensor", weights=weights)
            with self.desk.run.phase("sampling"):
                found = drafted(model, instructions, s.sample, self.desk.seed)
            return [
                {"prompt_id": r["prompt_id"], "source": name, "text": one["text"], "finished": one["finished"],
                 "n_tok": one["tokens"]}
                for r in found for one in r["candidates"]
            ]  # fmt: skip

        return self.desk.records(f"responses/{name}.jsonl", answers, made_from=["instructions.jsonl"])

    def judged(self, instructions: Sequence[Record], answers: Mapping[str, Sequence[Record]]) -> np.ndarray:
        """float[R,K,N], the score that each judge and verifier gives each source's answer (S3); nan: none."""
        s = self.settings
        made_from = [f"responses/{name}.jsonl" for name in answers]
        asked = [
            {"prompt": r["prompt"], "response": one["text"], "answer": r.get("answer"), "prompt_id": r["prompt_id"]}
            for some in answers.values() for r, one in zip(instructions, some, strict=True)
        ]  # fmt: skip

        def by_model(judge: str) -> list[Record]:
            model = self.desk.load(judge, s.train)
            with self.desk.run.phase("scoring"):
                return score_responses(model, asked, mesh=compute_for(s.train).mesh)

        def by_rule(rule: str) -> list[Record]:
            score = verifier(rule)
            return [{**r, "reward": score(r["response"], r["answer"])} for r in asked]

        voters = {model_name(judge): functools.partial(by_model, judge) for judge in s.judges}
        voters |= {rule: functools.partial(by_rule, rule) for rule in s.verifiers}
        found = []
        for name, voted in voters.items():
            told = functools.partial(_scores, voted, list(answers))
            records = self.desk.records(f"scores/{name}.jsonl", told, made_from=made_from)
            values = [np.nan if r["score"] is None else r["score"] for r in records]
            found.append(np.asarray(values, np.float64).reshape(len(answers), -1))
        return np.stack(found)


def _scores(voted: Callable[[], list[Record]], names: Sequence[str]) -> list[Record]:
    records = voted()
    each = len(records) // len(names)
    return [
        {"prompt_id": r["prompt_id"], "source": names[number // each], "score": r["reward"]}
        for number, r in enumerate(records)
    ]


def panel_of(s: AdvantageSettings, desk: Desk) -> Panel:
    """The models, and what all of them can read."""
    folders = {model_name(path): model_path(path) for path in (s.target, *s.sources)}
    limit = min(s.max_length, *(check_folder(folder).max_positions for folder in folders.values()))
    if limit < s.max_length:
        desk.run.log(f"texts have {limit} tokens at most instead of {s.max_length}: a model reads no more")
    held_out = [] if s.instructions else problems(s.problems, s.test_per_skill, split="test", seed=s.seed)
    tests = replace(eval_set(s, held_out), samples=s.eval_samples, seed=s.seed)
    tests.check(*folders.values())
    unseen = _in_words(held_out, s.seed)
    if s.held_out_instructions:
        unseen = _read(s, desk, s.held_out_instructions, "held-out instructions")
    return Panel(s, desk, folders, limit, tests, unseen)


def instructions_of(s: AdvantageSettings, desk: Desk) -> list[Record]:
    """S0: {"prompt_id", "prompt", "response", "answer"}, the right answer as text and as a verifier reads it.

    Raises:
      InputError: a record with other than one user message, or without an answer that a verifier needs.
    """
    if not s.instructions:
        return _in_words(problems(s.problems, s.zoo_instructions, split="train", seed=s.seed + 1000), s.seed)
    out = _read(s, desk, s.instructions, "instructions")
    return _with_answers(out, s.instructions) if s.verifiers else out


def _in_words(asked: Sequence[Record], seed: int) -> list[Record]:
    """The zoo's problems with a right answer each: of plants in a wording drawn by the seed, of skills a sentence."""
    rng = np.random.default_rng(seed)
    return [
        {name: r[name] for name in ("prompt_id", "prompt", "answer")}
        | {"response": str(rng.choice(r["wordings"])) if "wordings" in r else in_style(r["answer"], "sentence")}
        for r in asked
    ]


def _read(s: AdvantageSettings, desk: Desk, file: str, stage: str) -> list[Record]:
    rows, dropped = parse_rows(load_records(file), "sft", file=file, on_bad=s.on_bad)
    desk.counter(stage).update(dropped)
    out = []
    for row in rows:
        if len(row.messages) != 1:
            problem = "has a system message or more than one user message"
            if s.on_bad == "error":
                cure = "Give single-turn instructions, or leave such out with --on-bad skip"
                raise InputError(problem, file=file, record=row.name, field="prompt", cure=cure)
            desk.counter(stage)[problem] += 1
            continue
        out.append({"prompt_id": row.name, "prompt": row.messages[0]["content"], "response": row.responses[0] or ""})
    return out


def _with_answers(rows: Sequence[Record], file: str) -> list[Record]:
    known = {r["prompt"]: r.get("answer") for r in load_records(file) if isinstance(r.get("prompt"), str)}
    out = [{**row, "answer": known.get(row["prompt"])} for row in rows]
    check_answers(out, file=file, cure='Add "answer", which --verifiers read')
    return out


def labels_of(
    panel: Panel, instructions: Sequence[Record], readings: Mapping[str, Reading],
    answers: Mapping[str, Sequence[Record]],
) -> list[Record]:  # fmt: skip
    """S4: {"prompt_id", "train_winner", "ce", "infer_winner", "votes", "scores", "valid"} of each instruction; winners
    are names, None where no source can win."""
    s, names = panel.settings, panel.names
    ces = np.stack([metrics_of(one.rows, one.documents, s.fusion) for one in readings.values()], 1)
    scores = panel.judged(instructions, answers)

    def made() -> list[Record]:
        rng, out = np.random.default_rng(s.seed), []
        for number, instruction in enumerate(instructions):
            own = [answers[name][number] for name in names]
            valid, judged = _valid(own, s.longest), scores[:, :, number]
            reader = by_reading(ces[number].tolist(), s.by_reading, rng)
            writer = by_writing(judged, valid, s.by_writing, rng)
            out.append({
                "prompt_id": instruction["prompt_id"], "ce": _plain(ces[number]), "valid": valid,
                "train_winner": None if reader is None else names[reader],
                "infer_winner": None if writer is None else names[writer],
                "votes": vote(judged, valid).votes.tolist(), "scores": [_plain(row) for row in judged],
            })  # fmt: skip
        return out

    made_from = [f"scores/{model_name(judge)}.jsonl" for judge in (*s.judges, *s.verifiers)]
    return panel.desk.records("advantage.jsonl", made, made_from=made_from)


def _valid(answers: Sequence[Record], longest: float) -> list[bool]:
    """Whether each answer may win: it is not empty, came to its end, and is not much longer than the others."""
    found = [bool(one["text"]) and bool(one["finished"]) for one in answers]
    if longest and any(found):
        most = longest * float(np.median([one["n_tok"] for one, ok in zip(answers, found, strict=True) if ok]))
        found = [ok and one["n_tok"] <= most for one, ok in zip(answers, found, strict=True)]
    return found


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
