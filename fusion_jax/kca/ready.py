"""Ready records: what this project or the published program found before, joined with the sources it is told of.

Published files of two kinds tell their instances by their places alone, as "idx_sft5" in verdicts and "idx_sft5_test2"
in questions: 5 is the number, from 0, of a line of stage 3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad
from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.files import regular_file
from fusion_jax.json_files import read_json
from fusion_jax.jsonl import Record, numbered
from fusion_jax.kca.records import (
    CURE,
    KNOWN,
    NEED,
    NO_LABEL,
    NO_NEED,
    NO_QUESTION,
    UNKNOWN,
    ExamItem,
    Instance,
    Need,
    check_item,
    instances_in,
    item_in,
)
from fusion_jax.paths import read_range

NOT_READY = "not among the ready records"
VERDICTS = re.compile(rb'\s*\{\s*"threshold_')
STAGE_3 = "Give the lines of stage 3 by --instructions; those that need no facts may stand behind them"


@dataclass(frozen=True)
class Said:
    """What a file of places says of an instance: its questions, why it has none, or its class."""

    tests: tuple[ExamItem, ...] = ()
    lost: str = ""
    label: str = ""


@dataclass(frozen=True)
class Ready:
    """A file of ready records. threshold: whose verdicts are taken, where it holds verdicts; on_bad: of its records."""

    file: str
    threshold: float
    on_bad: OnBad = "error"

    def joined(self, sources: Sequence[Instance] | None, counts: Counter[str]) -> list[Instance]:
        """Every source with what the file says of it; without sources, its own records.

        Raises:
          InputError: a broken record, no such threshold, places of no source.
        """
        if _holds_verdicts(self.file):
            return self._placed(self._verdicts(counts), sources)
        records = load_records(self.file)
        if records and {"idx", "question"} <= records[0].keys():
            return self._placed(self._exams(records, counts), sources)
        ready = [settled(one) for one in instances_in(records, self.file, self.on_bad, counts)]
        return ready if sources is None else with_sources(ready, sources, counts)

    def _exams(self, records: Sequence[Record], counts: Counter[str]) -> dict[int, Said]:
        """The valid questions of each place, in their order; the others are counted."""
        out = dict[int, list[ExamItem]]()
        for number, record in numbered(records):
            fields = Fields(record, self.file, number, cure=CURE)
            place, test = self._place(fields.text("idx"), r"_test\d+", number), item_in(fields)
            reason = check_item(test)
            counts[f"question: {reason}"] += bool(reason)
            out.setdefault(place, []).extend([] if reason else [test])
        return {place: Said(tuple(tests), "" if tests else NO_QUESTION) for place, tests in out.items()}

    def _verdicts(self, counts: Counter[str]) -> dict[int, Said]:
        """The class of each place at the threshold. The published program takes an instance's fourth question for an
        instance of its own, "idx_sft5_test3": such are counted."""
        cure = "Give the published file as it is"
        found = Fields(read_json(self.file, cure=cure), self.file, cure=cure)
        name = f"threshold_{self.threshold:g}"
        if name not in found.values:
            problem = f"has no verdicts at {self.threshold:g}, but {', '.join(sorted(found.values))}"
            raise InputError(problem, file=self.file, field="--exam.threshold", cure="Set it to one of these")
        verdicts = found.object(name)
        labels = {idx: KNOWN if verdicts.flag(idx) else UNKNOWN for idx in verdicts.values if "_test" not in idx}
        counts["verdicts on a question that is no instance"] += len(verdicts.values) - len(labels)
        return {self._place(idx, "", None): Said(label=label) for idx, label in labels.items()}

    def _place(self, idx: str, behind: str, record: int | None) -> int:
        """The number in a name. behind: what the name ends with, as a pattern."""
        found = re.fullmatch(rf"idx_(?:\w*\D)?(\d+){behind}", idx)
        if found is None:
            raise InputError(f"is {quoted(idx)}, no place", file=self.file, record=record, field="idx", cure=CURE)
        return int(found[1])

    def _placed(self, said: Mapping[int, Said], sources: Sequence[Instance] | None) -> list[Instance]:
        """Every source with what is said of its place."""
        if sources is None:
            problem = "is missing: this file tells its instances by their places alone"
            raise InputError(problem, file=self.file, field="--instructions", cure=STAGE_3)
        if self.on_bad != "error":
            problem = "leaves records out, and this file tells its instances by their places"
            raise InputError(problem, file=self.file, field="--on-bad", cure="Correct the records and leave it out")
        if (last := max(said, default=-1)) >= len(sources):
            problem = f"holds {len(sources)} records, and the place {last} is told of"
            raise InputError(problem, file=self.file, field="--instructions", cure=STAGE_3)
        out = list[Instance]()
        for place, one in enumerate(sources):
            own = said.get(place)
            if own is not None and one.need.label == NO_NEED:
                problem = f"{quoted(one.id)} stands at place {place}, and needs no facts by its own record"
                raise InputError(problem, file=self.file, field="--instructions", cure=STAGE_3)
            need = one.need if one.need.label else Need(NEED)
            out.append(
                unsaid(one) if own is None else
                replace(one, need=need, tests=own.tests or one.tests, lost=own.lost, label=own.label)
            )  # fmt: skip
        return out


def _holds_verdicts(file: str) -> bool:
    """Whether a file is one of published verdicts, an object of their thresholds."""
    if file.startswith("hf:") or not file.endswith((".json", ".jsonl")):
        return False
    return bool(VERDICTS.match(read_range(regular_file(file), 0, 4096)))


def settled(one: Instance) -> Instance:
    """A ready record. What it does not say is not asked for: it is lost without a label, a class or, where it needs
    facts, a question."""
    needs = one.need.label == NEED and not one.label and not one.tests
    lost = one.lost or (NO_LABEL if not one.need.label and not one.label else NO_QUESTION if needs else "")
    return replace(one, lost=lost)


def with_sources(ready: Sequence[Instance], sources: Sequence[Instance], counts: Counter[str]) -> list[Instance]:
    """Every source with what ready records say of it: by id and instruction, else by instruction and, of several that
    are alike, in their order. What is said of no source is counted.

    Of a source of which nothing is said see `unsaid`.
    """
    by_id, by_text, used = {one.id: one for one in ready}, dict[str, list[Instance]](), set[str]()
    for one in ready:
        by_text.setdefault(one.source.instruction, []).append(one)

    def said_of(one: Instance) -> Instance | None:
        instruction, same = one.source.instruction, by_id.get(one.id)
        if same is not None and same.source.instruction == instruction and same.id not in used:
            return same
        alike = (other for other in by_text.get(instruction, []) if other.id not in used)
        return next((other for other in alike if not (one.need.label == NO_NEED and _needs(other))), None)

    out = []
    for one in sources:
        same = said_of(one)
        if same is not None:
            used.add(same.id)
            out.append(replace(same, source=one.source))
        else:
            out.append(unsaid(one))
    counts["ready records of no source"] += len(by_id.keys() - used)
    return out


def unsaid(one: Instance) -> Instance:
    """A source of which ready records say nothing. Exams are written of instances that need facts alone: so it stays as
    it is where it says itself that it needs none, as lines of stage 1 do, or has a class; else it is lost."""
    return one if one.label or one.need.label == NO_NEED else replace(one, lost=one.lost or NOT_READY)


def _needs(one: Instance) -> bool:
    """Whether a record says that its instance needs facts."""
    return one.need.label == NEED or one.label in (KNOWN, UNKNOWN)
