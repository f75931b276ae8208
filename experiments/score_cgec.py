"""Score corrections of Chinese sentences: ChERRANT by characters, or the M2 score by words.

    python experiments/score_cgec.py --hypothesis hyp.para --references ref.para --out scores.json
    python experiments/score_cgec.py --hypothesis hyp.txt --references nlpcc18.m2 --scorer m2 --segment jieba
    python experiments/score_cgec.py --hypothesis pairs.jsonl                  # {"source", "references", "pred"} a line

Data: docs/cgec.md has the forms. Hypotheses are para files (id, source, text apart by tabs), one text a line, or JSON
lines with "pred"; references are para files, M2 files, JSON lines, or one text a line beside --source.

Result: a table on the screen with precision, recall, F, counts, the share of error-free sentences that are changed, the
counts of each type of edit, and the mode, without which scores cannot be compared; with --out as JSON, with --sentences
each sentence with its edits as JSON lines. Hardware: a CPU; 6,000 sentences take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fusion_jax.errors import InputError
from fusion_jax.evals.cgec import (
    Item,
    Mode,
    Report,
    Segment,
    load_dictionaries,
    score,
    score_annotated,
    score_m2,
    segment,
)  # fmt: skip
from fusion_jax.evals.cgec.report import edits_text, tables
from fusion_jax.evals.cgec.task_files import Form, Task, read_task
from fusion_jax.files import write_json
from fusion_jax.jsonl import write_jsonl
from fusion_jax.markdown import markdown_table
from fusion_jax.options import File
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment


@dataclass(frozen=True)
class Settings:
    """Hypotheses, references, and how they are compared."""

    basic: ClassVar = (
        "hypothesis", "references", "source", "form", "scorer", "mode", "segment", "out", "sentences", "show",
    )  # fmt: skip

    hypothesis: File
    """Corrected sentences: a para file, one text a line, or JSON lines with "pred"."""
    references: File = ""
    """Right sentences or annotated ones; without, they stand in the hypotheses' JSON lines."""
    source: File = ""
    """Sources, one a line, for references of one text a line; else they are compared with the references' own."""
    form: Form = "auto"
    """Form of the references; auto goes by the file's name and first line."""
    scorer: Literal["cherrant", "m2"] = "cherrant"
    """By characters (cherrant), or by words and annotators' edits (m2, which needs an M2 file)."""
    mode: Mode = "no_dict"
    """How ChERRANT aligns: with dictionaries and all minimal paths, the first path, or without dictionaries."""
    thesaurus: File = ""
    """Thesaurus with a code and its words a line (Cilin), for official_all and first_path."""
    confusions: File = ""
    """Confusion set with a character and those that it is confused with a line."""
    pinyin: File = ""
    """Readings with a character and its readings a line; without, those of the package pypinyin."""
    segment: Segment = "given"
    """How hypotheses become words for m2: they are, jieba's, or each character is one."""
    beta: float = 0.5
    """Weight of recall in F."""
    compat_start: bool = False
    """Count as the published M2 program does, which never credits several words inserted before the first one."""
    out: File = ""
    """JSON file for the numbers."""
    sentences: File = ""
    """JSON lines for every sentence with its edits and counts."""
    show: int = 0
    """Sentences with wrong or missing edits that are shown on the screen."""

    def __post_init__(self) -> None:
        bounded(self, "beta", above=0)
        bounded(self, "show", least=0)
        if bool(self.thesaurus) != bool(self.confusions):
            raise InputError("is missing", field="confusions" if self.thesaurus else "thesaurus", cure="Give both")


def main(s: Settings) -> None:
    if not s.hypothesis:
        raise InputError("is missing", field="--hypothesis", cure="Give a file of corrected sentences")
    report = scored(s, read_task(s.hypothesis, s.references, s.source, s.form))
    print(*(markdown_table(rows) for rows in tables(report) if rows), sep="\n\n")
    wrong = [item for item in report.items if item.counts.fp or item.counts.fn][: s.show]
    if wrong:
        print("", markdown_table([shown(item) for item in wrong]), sep="\n")
    if s.sentences:
        write_jsonl(s.sentences, (item.as_json() for item in report.items))
    if s.out:
        write_json(s.out, report.as_json(), sort=False)


def scored(s: Settings, task: Task) -> Report:
    """The report of the scorer that is asked for."""
    if s.scorer == "m2":
        if task.annotated is None:
            raise InputError("m2 needs annotated edits", field="scorer", cure="Give --references FILE.m2")
        words = segment(task.hypotheses, s.segment)
        return score_m2(task.annotated, words, beta=s.beta, segmented=s.segment, compat_start=s.compat_start)
    known = load_dictionaries(s.thesaurus, s.confusions, s.pinyin) if s.thesaurus else None
    if task.annotated is None:
        return score(task.sources, task.hypotheses, task.references, s.mode, known, beta=s.beta)
    return score_annotated(task.annotated, task.hypotheses, s.mode, known, beta=s.beta)


def shown(item: Item) -> dict[str, str]:
    """A row of a sentence: its edits and those of the reference that was kept."""
    return {
        "source": item.source, "hypothesis": item.hypothesis, "edits": edits_text(item.edits),
        "reference's edits": edits_text(item.gold), "TP/FP/FN": "/".join(map(str, item.counts)),
    }  # fmt: skip


PRESETS = {"tiny": Settings("")}

if __name__ == "__main__":
    run_experiment(Settings, main, presets=PRESETS, description=__doc__)
