"""The target and its sources at a desk: what they read and write, who judges that, and what is measured.

Stages S1 to S3 of ProFuser (arXiv 2408.04998, section 3 of its specification).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion_jax.data.chat import turn_end
from fusion_jax.data.documents import Document, chat_documents, token_counts
from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.evals.perplexity import surprise
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model, check_folder, tokenizer_of
from fusion_jax.models.int8 import Weights
from fusion_jax.plan import fits
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.runs.advantages import AdvantageSettings
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.corpora import check_entries
from fusion_jax.runs.desk import Desk, Teacher
from fusion_jax.runs.evolving import drafted
from fusion_jax.runs.instructions import in_words, read_instructions
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.prompts import eval_set
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.teaching import Work
from fusion_jax.sampling.generate import load_to_sample
from fusion_jax.teachers.documents import Reading, read_documents
from fusion_jax.teachers.opinions import Reach
from fusion_jax.train.settings import compute_for
from fusion_jax.zoo import model_path
from fusion_jax.zoo.problems import problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEW_TEXTS = 20  # of which low coverage is told, no reason to stop


def answer_document(reader: PreTrainedTokenizerBase, row: Row) -> Document:
    """A prompt with its response, of which the response and the token that ends the turn are scored: what a template
    writes behind that says nothing of a model."""
    (document,) = chat_documents([row], reader, reader)
    end = turn_end(reader)
    (first, last), (_, content) = document.scored[-1], document.contents[-1]
    mark = "" if end is None else str(reader.convert_ids_to_tokens(end))
    place = document.text.find(mark, content, last) if mark else -1
    return document._replace(scored=((first, place + len(mark) if place >= 0 else last),))


@dataclass(frozen=True)
class Panel:
    """The target and its sources at a desk, by name, the target first. limit: tokens that all of them read.

    held_out: right answers as the target reads them, of which bits per byte are measured; bits: so far, by model.
    reached: how much of each source reached the target's tokens, by mode and name, so far. awake: live sources.
    """

    settings: AdvantageSettings
    desk: Desk
    folders: Mapping[str, Path]
    limit: int
    tests: EvalSet
    held_out: Sequence[Document] = ()
    bits: dict[str, float] = field(default_factory=dict)
    reached: dict[tuple[str, str], Reach] = field(default_factory=dict)
    awake: dict[str, Teacher] = field(default_factory=dict)
    work: Work = field(default_factory=Work)

    @property
    def names(self) -> list[str]:
        """Of all sources, the target first."""
        return list(self.folders)

    def weights(self, name: str) -> Weights:
        """How a model's matrices are held; the target's as its files have them."""
        return "stored" if name == self.names[0] else self.settings.source_weights

    def load(self, name: str) -> Model:
        """A model on the mesh of training."""
        return self.desk.load(self.folders[name], self.settings.train, self.weights(name))

    def whole(
        self, records: Sequence[Record], stage: str, names: Sequence[str], *, strict: bool = False
    ) -> tuple[list[int], dict[str, list[Document]]]:
        """Which of these prompts with responses all of these models read whole, each in its own template, and how.

        The others are counted; where `strict`, one that a template refuses or changes is an error.
        """
        readers = {name: tokenizer_of(self.folders[name]) for name in names}
        kept, found, counts = list[int](), {name: list[Document]() for name in names}, Counter[str]()
        for number, record in enumerate(records):
            row = Row(record["prompt_id"], ({"role": "user", "content": record["prompt"]},), (record["response"],))
            try:
                views = {name: answer_document(reader, row) for name, reader in readers.items()}
            except InputError:
                if strict:
                    raise
                counts["refused by a template"] += 1
                continue
            if max(token_counts(readers[name], [view])[0] for name, view in views.items()) > self.limit:
                counts["longer than max_length in some tokenizer"] += 1
                continue
            kept.append(number)
            for name, view in views.items():
                found[name].append(view)
        self.desk.counter(stage).update(counts + Counter({"used": len(kept)}))
        return kept, found

    def check(self, instructions: Sequence[Record]) -> None:
        """Refuse too few instructions, or some whose answers a judge could not read; say which tests are among them."""
        s = self.settings
        self.desk.check_enough(len(instructions), s.train, "--train")
        for judge in s.judges:
            fits.check_judged(model_path(judge), instructions, s.sample.max_new_tokens, "--sample.max-new-tokens")
        self.desk.note_shared(self.tests.prompts, [one["prompt"] for one in instructions])

    def note_reach(self, mode: str, name: str, reach: Reach, texts: int) -> None:
        """Keep how much of a source's distributions reached the target's tokens; refuse too little of many texts."""
        self.reached[mode, name] = reach
        reached = 1.0 - reach.rules["fallback"] - reach.rules["empty"]
        if reached >= self.settings.least_coverage:
            return
        told = f"only {100 * reached:.0f} % of the target's tokens get a row of '{name}' ({mode}, {texts} texts)"
        if texts < FEW_TEXTS:
            self.desk.run.log(f"note: {told}")
            return
        cure = "Look for another word boundary or template, leave the source out, or lower it and --resume"
        raise InputError(told, field="--least-coverage", cure=cure)

    def read(self, name: str, folder: str, documents: Sequence[Document]) -> Reading:
        """A model's distributions on documents (S1, S5), stored once, or of a source that stays in memory."""
        s, run, live = self.settings, self.desk.run, self.settings.teachers == "live"
        reader = self.awake.get(name) or self.desk.teacher(self.folders[name], s.train, self.weights(name), s.teachers)
        if live:
            self.awake[name] = reader
        with run.timed(f"reading {folder}, {name}"):
            reading = read_documents(
                None if live else run.sub(folder).file(name), name, reader.model, documents, k=s.k,
                max_length=self.limit, compute=reader.compute, batch_size=s.teacher_batch, progress=run.progress,
                log_probs=s.log_probs,
            )  # fmt: skip
        self.work.note(name, f"reading {folder}", reader.model.config, [len(text.ids) for text in reading.texts])
        return reading

    def measure(self, name: str, model: Model, made_from: Sequence[str]) -> None:
        """Accuracy on the test prompts, and bits per byte of held-out right answers, where there are any."""
        self.desk.judge(name, model, self.tests, made_from=made_from)
        if self.held_out:
            compute = compute_for(self.settings.train)
            with self.desk.run.phase("judging"):
                read = surprise(model, self.held_out, max_length=self.limit, compute=compute)
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
            folder, weights = self.folders[name], self.weights(name)
            model = load_to_sample(folder, s.sample.mesh_tensor, "--sample.mesh-tensor", weights=weights)
            with self.desk.run.phase("sampling"):
                found = drafted(model, instructions, s.sample, self.desk.seed)
            return [
                {"prompt_id": r["prompt_id"], "source": name, "text": one["text"], "finished": one["finished"],
                 "n_tok": one["tokens"]}
                for r in found for one in r["candidates"]
            ]  # fmt: skip

        found = self.desk.records(f"responses/{name}.jsonl", answers, made_from=["instructions.jsonl"])
        self._note_lengths(name, "writing", self.folders[name], [r["prompt"] for r in instructions], found)
        return found

    def _note_lengths(
        self, name: str, what: str, folder: Path, prompts: Sequence[str], answers: Sequence[Record]
    ) -> None:
        """Count prompts and answers as work of a model, in its tokens, without those of its template."""
        reader = tokenizer_of(folder)
        texts = [f"{prompt} {one['text']}" for prompt, one in zip(prompts, answers, strict=True)]
        lengths = [len(ids) for ids in reader(texts, add_special_tokens=False)["input_ids"]] if texts else []
        self.work.note(name, what, check_folder(folder), lengths)

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

        judges = {model_name(judge): model_path(judge) for judge in s.judges}
        voters = {model_name(judge): functools.partial(by_model, judge) for judge in s.judges}
        voters |= {rule: functools.partial(by_rule, rule) for rule in s.verifiers}
        found = []
        for name, voted in voters.items():
            told = functools.partial(_scores, voted, list(answers))
            records = self.desk.records(f"scores/{name}.jsonl", told, made_from=made_from)
            if name in judges:
                every = [one for some in answers.values() for one in some]
                self._note_lengths(name, "judging", judges[name], [r["prompt"] for r in asked], every)
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
    configs = {name: check_folder(folder) for name, folder in folders.items()}
    check_entries(s.k, configs)
    limit = min(s.max_length, *(config.max_positions for config in configs.values()))
    if limit < s.max_length:
        desk.run.log(f"texts have {limit} tokens at most instead of {s.max_length}: a model reads no more")
    held_out = [] if s.instructions else problems(s.problems, s.test_per_skill, split="test", seed=s.seed)
    tests = replace(eval_set(s, held_out), samples=s.eval_samples, seed=s.seed)
    tests.check(*folders.values())
    unseen = in_words(held_out, s.seed)
    if s.held_out_instructions:
        counts = desk.counter("held-out instructions")
        unseen = read_instructions(s.held_out_instructions, counts, on_bad=s.on_bad, answers=False)
    panel = Panel(s, desk, folders, limit, tests)
    return replace(panel, held_out=panel.whole(unseen, "held-out instructions", panel.names[:1])[1][panel.names[0]])
