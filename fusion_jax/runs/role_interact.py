"""SocialBench as a run: prompts, replies that are kept as they come, scored rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from fusion_jax.asking.ask import details
from fusion_jax.asking.contract import Answerer, Decoding, Failure, Outcome, Question
from fusion_jax.asking.log import ReplyLog, identity_in, key_of
from fusion_jax.errors import InputError
from fusion_jax.evals.socialbench.aggregate import Unparsed
from fusion_jax.evals.socialbench.baselines import BaselineName, baseline
from fusion_jax.evals.socialbench.parsers import PARSERS, ParserName
from fusion_jax.evals.socialbench.prompts import Prompt, Templates, fitted, prompt_of, rewritten, templates_of
from fusion_jax.evals.socialbench.records import MEMORY, SAMPLE, BenchFile, Item, load
from fusion_jax.evals.socialbench.rows import Asked, Row, row_of
from fusion_jax.fields import Fields
from fusion_jax.jsonl import Record, numbered, read_jsonl
from fusion_jax.options import File, Files, Folder
from fusion_jax.runs.asking import REPLIES, AskingSettings, made_again, outcomes_of
from fusion_jax.runs.desk import Desk
from fusion_jax.settings import bounded

PROMPTS, ROWS = "prompts.jsonl", "rows.jsonl"
CURE = "Give the folder of a run on the same data, wording and rotations"


@dataclass(frozen=True)
class RoleSettings(AskingSettings):
    """The benchmark's files, how its records are asked, and how replies are read."""

    files: Files = ()
    """Files of the benchmark (self_awareness.json, ...); without, 20 invented records."""
    limit: int = 0
    """First records of each file that are asked; 0: all."""
    language: Literal["all", "en", "zh"] = "all"
    """Which records are asked."""
    baseline: BaselineName = "none"
    """Instead of a model: what always says A, what knows the answers, or what guesses."""
    rescore: Folder = ""
    """Folder of an earlier run whose replies are read and scored again; nobody is asked."""
    templates: File = ""
    """Prompts in the benchmark's own words, a JSON file that is verified; without, this project's words."""
    own_wording: bool = False
    """Whether --templates may hold other words than the benchmark's."""
    profile: bool = True
    """Whether prompts show the profiles."""
    rotations: int = 1
    """How often choices are asked, each time with their texts moved one letter on."""
    parser: ParserName = "official"
    """How letters are read out of replies; published numbers are of the official one."""
    thinking: bool = False
    """Whether spans <think>...</think> are left out of replies before they are read."""
    unparsed: Unparsed = "drop"
    """Whether replies of which nothing can be read leave the headline (drop, as published), or count 0."""
    partial: bool = True
    """Whether a part of several right letters counts, as published."""
    choice_tokens: int = 32
    """Longest reply to a choice."""
    memory_tokens: int = 256
    """Longest reply that is to remember something."""
    temperature: float = 0.0
    """Temperature of sampling; 0 always takes the most probable token."""
    top_p: float = 1.0
    """Share of the probability mass that is sampled from; 1: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "limit", "temperature", least=0)
        bounded(self, "rotations", least=1, most=8)
        bounded(self, "choice_tokens", "memory_tokens", least=1)
        bounded(self, "top_p", above=0, most=1)

    def check(self) -> None:
        super().check()
        given = {"server": bool(self.server), "baseline": self.baseline != "none", "rescore": bool(self.rescore)}
        several = [name for name, value in given.items() if value]
        if len(several) > 1:
            raise InputError(f"stands beside --{several[0]}", field=several[1], cure="Give one of them")
        if self.own_wording and not self.templates:
            raise InputError("is missing", field="templates", cure="Give the file of your wording")

    @property
    def asks_model(self) -> bool:
        """Whether --model is loaded."""
        return not self.server and not self.rescore and self.baseline == "none"

    @property
    def speaker(self) -> str:
        """What the answerer is called in tables."""
        return (
            self.called
            if self.baseline == "none"
            else {"echo": "Echo", "oracle": "Oracle", "random": "Random"}[self.baseline]
        )

    def decoding(self, memory: bool) -> Decoding:
        """How replies to one of the two sorts of prompts are decoded; greedy ones are the same whatever the seed."""
        tokens = self.memory_tokens if memory else self.choice_tokens
        return Decoding(tokens, self.temperature, self.top_p, seed=self.seed if self.temperature else 0)


class Bench(NamedTuple):
    """What is asked: files, their items of the language asked for, the wording."""

    files: Sequence[BenchFile]
    items: Sequence[Item]
    templates: Templates


class Answered(NamedTuple):
    """identity: of who answered. rows: a scored reply to each prompt. details: what a failure of each reason says."""

    identity: str
    rows: Sequence[Row]
    details: Mapping[str, str]


def bench_of(s: RoleSettings, desk: Desk) -> Bench:
    """The benchmark's files; what can never be answered rightly is noted."""
    files = load(s.files or (SAMPLE,), s.limit)
    templates = templates_of(s.templates, own=s.own_wording) if s.templates else rewritten()
    items = [one for file in files for one in file.items if s.language in ("all", one.lang)]
    if not items:
        raise InputError(f"no record is in {s.language}", field="language", cure="Choose another language")
    if odd := [one for one in items if not one.answerable]:
        where = ", ".join(f"{one.file} {one.index}" for one in odd[:5])
        desk.run.log(f"note: {len(odd)} labels are no option of their record and cannot be right: {where}")
    return Bench(files, items, templates)


def prompts_of(s: RoleSettings, desk: Desk, bench: Bench, answerer: Answerer | None) -> list[Asked]:
    """Every prompt, with as many of the oldest utterances left out as it takes to fit; made once."""
    turned = [(item.rotated(by), by) for by in range(s.rotations) for item in bench.items if not by or item.choices]
    if s.rescore:
        asked = _as_before(s, bench, turned)
        _replies_before(s, asked)  # refused before anything is made
    else:
        fits = [_fits(s, answerer, item) for item, _ in turned]
        prompts = [
            fitted(item, bench.templates, own, profile=s.profile) for (item, _), own in zip(turned, fits, strict=True)
        ]
        asked = [Asked(item, prompt, by) for (item, by), prompt in zip(turned, prompts, strict=True)]
    desk.records(PROMPTS, lambda: [_as_record(one) for one in asked], made_from=[])
    if cut := [one.prompt.dropped for one in asked if one.prompt.dropped]:
        desk.run.log(f"note: the oldest utterances of {len(cut)} prompts were left out, {sum(cut)} in all")
    return asked


def answered(s: RoleSettings, desk: Desk, asked: Sequence[Asked], answerer: Answerer | None) -> Answered:
    """Replies to all prompts, scored."""
    if s.rescore:
        identity, outcomes = _replies_before(s, asked)
    else:
        speaker = answerer or baseline(s.baseline, asked, s.seed)
        identity, outcomes = speaker.identity, _outcomes(s, desk, asked, speaker)
    failed = Counter(one.reason for one in outcomes if isinstance(one, Failure))
    desk.counter("replies").update({"answered": len(outcomes) - sum(failed.values()), **failed})
    rows = [_row(s, one, outcome) for one, outcome in zip(asked, outcomes, strict=True)]
    made_again(desk, ROWS)
    desk.records(ROWS, lambda: [row.as_json() for row in rows], made_from=[PROMPTS])
    return Answered(identity, rows, details(outcomes))


def speaker_of(s: RoleSettings, desk: Desk) -> Answerer | None:
    """The model or the server; None for a baseline, and where nobody is asked."""
    return None if s.rescore or s.baseline != "none" else s.answerer(desk)


def _fits(s: RoleSettings, answerer: Answerer | None, item: Item) -> Callable[[str], bool]:
    how = s.decoding(item.kind == MEMORY)
    return lambda text: answerer is None or answerer.fits(Question.of(text), how)


def _outcomes(s: RoleSettings, desk: Desk, asked: Sequence[Asked], answerer: Answerer) -> list[Outcome]:
    """Replies to choices, then to what is to be remembered, in the order of the prompts."""
    found: dict[int, Outcome] = {}
    for memory, what in ((False, "choices"), (True, "memory")):
        numbers = [number for number, one in enumerate(asked) if (one.item.kind == MEMORY) == memory]
        questions = [Question.of(asked[number].prompt.text) for number in numbers]
        found.update(zip(numbers, outcomes_of(s, desk, answerer, questions, s.decoding(memory), what), strict=True))
    return [found[number] for number in range(len(asked))]


def _row(s: RoleSettings, asked: Asked, outcome: Outcome) -> Row:
    if isinstance(outcome, Failure):
        return row_of(asked, None, "", outcome.reason, PARSERS[s.parser])
    return row_of(asked, outcome.text, outcome.finish, "", PARSERS[s.parser], thinking=s.thinking)


def _as_record(one: Asked) -> Record:
    item = one.item
    place = {"file": item.file, "index": item.index, "rotation": one.rotation, "dropped": one.prompt.dropped}
    return place | {"prompt": one.prompt.text}


def _as_before(s: RoleSettings, bench: Bench, turned: Sequence[tuple[Item, int]]) -> list[Asked]:
    """The prompts of an earlier run, which has to have been on the same items."""
    path = Path(s.rescore) / PROMPTS
    known: dict[tuple[str, int, int], Prompt] = {}
    for number, record in numbered(read_jsonl(path)):
        fields = Fields(record, path, number, cure=CURE)
        place = fields.text("file"), fields.integer("index"), fields.integer("rotation")
        known[place] = Prompt(fields.text("prompt"), fields.integer("dropped"))
    asked = []
    for item, by in turned:
        prompt = known.get((item.file, item.index, by))
        same = prompt is not None and prompt.text == prompt_of(
            item, bench.templates, dropped=prompt.dropped, profile=s.profile
        )
        if prompt is None or not same:
            problem = "has another prompt" if prompt is not None else "has no prompt"
            raise InputError(f"{problem} for {item.file} {item.index}", file=path, field="rescore", cure=CURE)
        asked.append(Asked(item, prompt, by))
    return asked


def _replies_before(s: RoleSettings, asked: Sequence[Asked]) -> tuple[str, list[Outcome]]:
    """Who answered in an earlier run, and what."""
    own = Path(s.rescore) / REPLIES
    folder = s.log or str(own if own.exists() else Path(s.rescore).parent / REPLIES)  # which the seeds of a run share
    entries = ReplyLog.of(folder, None).entries()
    identity, found = identity_in(entries.values(), folder), list[Outcome]()
    for one in asked:
        key = key_of(identity, Question.of(one.prompt.text), s.decoding(one.item.kind == MEMORY))
        if key not in entries:
            raise InputError(
                f"has no reply to {one.item.file} {one.item.index} that was decoded so", file=folder, field="rescore",
                cure="Give the settings of decoding of that run",
            )  # fmt: skip
        found.append(entries[key].outcome)
    return identity, found
