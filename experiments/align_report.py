"""How much of a source's knowledge a pair of tokenizers lets through, before any training: a coverage report.

    python experiments/align_report.py                                          # the zoo's pair on the zoo's texts
    python experiments/align_report.py --pivot FOLDER --source llama3.tiktoken --texts a.jsonl b.txt --both True

Data: pivot and source are Hugging Face folders, zoo:NAME, or vocabulary files (SentencePiece BPE .model, .tiktoken, the
latter cut into words as Llama-3 does). Texts are JSON lines with "text", grouped by "language" where a record has one,
else by file; or plain files, one text a line. No weights are read.

Hardware: a CPU; the default takes 5 s. Result: a table on
the screen; report.md, report.json and coverage.png in --out. Expected of the default: exact .33, suffix .18,
one-to-many .37, fallback .13 of the pivot's tokens, words at the start of a line among those that fall back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fusion_jax.align.coverage import (
    AlignedText,
    Coverage,
    Images,
    Method,
    align_texts,
    coverage,
    images_of,
    occurrences_of,
)
from fusion_jax.align.rules import Rules
from fusion_jax.align.sequences import Variant
from fusion_jax.align.tables import as_json, coverage_sentence, group_rows, image_rows, section
from fusion_jax.align.views import Pieces, TokenizerView, view_of
from fusion_jax.align.vocabulary import Weight, count_pairs, exact_map, mapping_statistics, mined_map
from fusion_jax.data.loaders import load_records, load_texts
from fusion_jax.data.raw_tokenizers import SUFFIXES, load_raw_tokenizer
from fusion_jax.data.records import Place, text
from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.jsonl import numbered
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.options import Files, Folder, ModelPath
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.plots import shares_figure
from fusion_jax.runs.provenance import Ran, write_report
from fusion_jax.settings import bounded, to_json
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Groups = dict[str, list[str]]
Map = Literal["exact", "mined", "statistics"]


@dataclass(frozen=True)
class Settings:
    """Two tokenizers, texts, and the rules of alignment."""

    pivot: ModelPath = "zoo:target"
    """Tokenizer that receives: a folder, zoo:NAME, or a .model or .tiktoken file."""
    source: ModelPath = "zoo:gemma-source"
    """Tokenizer that gives, named alike."""
    texts: Files = ()
    """Files of texts, grouped by "language" or by file; without, the zoo's."""
    out: Folder = "runs/align_report"
    """Folder of the report, which is made."""
    resume: bool = False
    """Write the report again where --out holds an unfinished one."""
    variant: Variant = "chat_v2"
    """The rules: FuseLLM's, or those of FuseChat's first or second version."""
    map: Map = "statistics"
    """The vocabulary map; statistics are counted on these texts."""
    maps: tuple[Map, ...] = ("exact", "mined", "statistics")
    """Maps whose images are told besides; mined ones of large vocabularies take minutes."""
    pieces: Pieces = "bytes"
    """What tokens are compared by: the bytes that they spell or, as published, their raw strings."""
    ms_weight: Weight = "inverse"
    """How statistics weigh the pairs that were counted; code as published."""
    align: Method = "dp"
    """Token alignment: the variant's edit distances (dp), or equal ends in the text (byte_offsets)."""
    hard: bool = False
    """The exact mode of chat_v2, which takes the exact map."""
    one_to_many: bool = True
    """Whether one pivot token can take its row from several source tokens (chat variants)."""
    both: bool = False
    """Report the other direction, too."""
    max_length: int = 2048
    """Tokens of a window of text."""
    max_texts: int = 0
    """Texts of a group; 0: all."""
    worst: int = 15
    """Tokens shown of those that fall back most."""

    def __post_init__(self) -> None:
        bounded(self, "max_length", least=1)
        bounded(self, "max_texts", "worst", least=0)


class Side(NamedTuple):
    """One of the two tokenizers."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    view: TokenizerView


def side_of(name: str, option: str) -> Side:
    """The tokenizer of a folder, of a model of the zoo, or of a vocabulary file."""
    if name.endswith(SUFFIXES):
        tokenizer: PreTrainedTokenizerBase = load_raw_tokenizer(name)
    else:
        tokenizer = tokenizer_of(model_path(name, option), option)
    return Side(name, tokenizer, view_of(tokenizer))


def read_groups(files: Sequence[str], most: int) -> Groups:
    """Texts by language or file, `most` of each (0: all); the zoo's texts where no file is given."""
    if not files:
        return {"zoo": corpus(seed=1, count=30)[: most or None]}
    groups: Groups = {}
    for file in files:
        if file.endswith((".txt", ".md")):
            groups.setdefault(Path(file).name, []).extend(load_texts(file))
            continue
        for number, record in numbered(load_records(file)):
            place = Place(file, number)
            group = text(record, "language", place) if record.get("language") is not None else Path(file).name
            groups.setdefault(group, []).append(text(record, "text", place))
    if not groups:
        raise InputError("there is no text", file=files[0], field="--texts", cure="Give files that hold texts")
    return {name: texts[: most or None] for name, texts in groups.items()}


def rules_of(s: Settings, pivot: Side, source: Side, aligned: Sequence[AlignedText], kind: Map) -> Rules:
    """The rules with a map."""
    counted = kind == "statistics" or s.variant == "chat_v1"
    counts = count_pairs(aligned, pivot.view, source.view) if counted else None
    if kind == "statistics":
        assert counts is not None
        variant: Literal["chat_v1", "chat_v2"] = "chat_v1" if s.variant == "chat_v1" else "chat_v2"
        vocab_map = mapping_statistics(counts, pivot.view, source.view, variant, s.ms_weight, s.pieces)
    else:
        vocab_map = (mined_map if kind == "mined" else exact_map)(pivot.view, source.view, s.pieces)
    return Rules(
        pivot.view, source.view, vocab_map, s.variant, hard=s.hard and kind == "exact", one_to_many=s.one_to_many,
        counts=counts if s.variant == "chat_v1" else None, pieces=s.pieces,
    )  # fmt: skip


def measure(s: Settings, pivot: Side, source: Side, groups: Groups) -> tuple[Coverage, dict[str, Images]]:
    """The coverage of one direction, and what becomes of the source's pieces under each map."""
    ours, theirs = (pivot.tokenizer, pivot.view), (source.tokenizer, source.view)
    how: dict[str, Any] = {"method": s.align, "max_length": s.max_length, "pieces": s.pieces}
    aligned = {name: align_texts(texts, ours, theirs, s.variant, **how) for name, texts in groups.items()}
    every = [row for rows in aligned.values() for row in rows]
    occurrences = occurrences_of(every, source.view)
    found = coverage(aligned, rules_of(s, pivot, source, every, s.map), worst=s.worst)
    return found, {
        kind: found.images if kind == s.map
        else images_of(rules_of(s, pivot, source, every, kind), occurrences, s.worst)
        for kind in dict.fromkeys((*s.maps, s.map))
    }  # fmt: skip


ABOUT = """Shares of the pivot's tokens by what they get: the source's row of the same token (exact), of one that ends
alike (suffix), of one of several tokens (one-to-many), only the next token of the text, which the row is to predict
(fallback), nothing (empty). Unmapped: share of the source's tokens without an image under the map; other text: of those
whose image is another text, so that a teacher who is sure of such a token has its mass go there."""


def check(s: Settings) -> None:
    """Settings that do not go together, told before anything is computed."""
    if s.hard and (s.variant != "chat_v2" or s.map != "exact"):
        raise InputError("goes with chat_v2 and the exact map only", field="--hard", cure="Leave it out")


def main(s: Settings) -> None:
    check(s)
    pivot, source = side_of(s.pivot, "--pivot"), side_of(s.source, "--source")
    groups = read_groups(s.texts, s.max_texts)
    with open_run(s.out, s, resume=s.resume) as run:
        report(s, run, pivot, source, groups)
        run.finish()


def report(s: Settings, run: RunFolder, pivot: Side, source: Side, groups: Groups) -> None:
    """Measure both directions; report.md, its pictures, report.json."""
    parts, values = [], []
    for number, (ours, theirs) in enumerate([(pivot, source), (source, pivot)][: 1 + s.both]):
        title = f"{ours.name} \u2190 {theirs.name}"
        found, images = measure(s, ours, theirs, groups)
        bars = {g.group: g.rules for g in found.groups}
        figure = shares_figure(bars, xlabel=f"share of pivot tokens, {title}", grey=("fallback", "empty"))
        run.secure()
        picture = save_figure(figure, run.file("coverage_reversed.png" if number else "coverage.png"))
        parts.append(section(title, found, images, picture))
        values.append({"pivot": ours.name, "source": theirs.name, **as_json(found, images)})
        tables = "\n\n".join(map(markdown_table, (group_rows(found), image_rows(images))))
        run.console.print(f"{title}\n{tables}\n", soft_wrap=True, markup=False, highlight=False)
    how = f"Rules {s.variant}, map {s.map}, alignment {s.align}, pieces compared as {s.pieces}."
    ran = Ran(__file__, s, {"tiny": Settings()})
    write_report(run, "Coverage of a pair of tokenizers", coverage_sentence(values[0]), ran, [ABOUT, how, *parts])
    write_json(run.file("report.json"), {"settings": to_json(s), "directions": values})
    run.log(f"report: {run.file('report.md')}")


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
