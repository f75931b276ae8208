"""How much of a source's knowledge a pair of tokenizers lets through, before any training: a coverage report.

    python experiments/align_report.py                                          # the zoo's pair on the zoo's texts
    python experiments/align_report.py --pivot FOLDER --source llama3.tiktoken --texts a.jsonl b.txt --both True

Pivot and source: a Hugging Face folder, zoo:NAME, or a vocabulary file (SentencePiece BPE .model, .tiktoken, the latter
cut into words as Llama-3 does). Texts: JSON lines with "text", grouped by "language" where a record has one, else by
file; or plain files, one text a line. No weights are read. Hardware: a CPU; the default takes 5 s. Result: a table on
the screen; report.md, report.json and coverage.png in --out. Expected of the default: exact .33, suffix .18,
one-to-many .37, fallback .13 of the pivot's tokens, words at the start of a line among those that fall back.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from transformers import PreTrainedTokenizerBase

from fusion_jax.align.coverage import (
    RULE_NAMES,
    AlignedText,
    Coverage,
    Images,
    Method,
    align_texts,
    coverage,
    images_of,
    occurrences_of,
)
from fusion_jax.align.raw_tokenizers import SUFFIXES, load_raw_tokenizer
from fusion_jax.align.rules import Rules
from fusion_jax.align.sequences import Variant
from fusion_jax.align.views import Pieces, TokenizerView, view_of
from fusion_jax.align.vocabulary import Weight, count_pairs, exact_map, mapping_statistics, mined_map
from fusion_jax.data.jsonl import numbered
from fusion_jax.data.loaders import load_records, load_texts
from fusion_jax.data.records import Place, text
from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.settings import run as run_experiment
from fusion_jax.settings import to_json
from fusion_jax.train.report import shares_figure
from fusion_jax.train.run_folder import RunFolder, open_run
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import corpus

Groups = dict[str, list[str]]
Map = Literal["exact", "mined", "statistics"]


@dataclass(frozen=True)
class Settings:
    """variant: the rules, of FuseLLM or of FuseChat's first or second version. map: the vocabulary map; statistics are
    counted on these texts. maps: those whose images are told besides; mined ones of large vocabularies take minutes.

    pieces: what tokens are compared by, the bytes that they spell, or raw, as published, their strings. ms_weight: of
    the statistics, "code" as published.
    align: dp, the variant's edit distances, or byte_offsets, equal ends in the text.
    hard: chat_v2's exact mode (with the exact map); one_to_many: the chat variants' rules for several source tokens.
    both: also the other direction. max_length: tokens a window; max_texts: of a group, 0 for all; worst: tokens shown.
    """

    pivot: str = "zoo:target"
    source: str = "zoo:gemma-source"
    texts: tuple[str, ...] = ()
    out: str = "runs/align_report"
    resume: bool = False
    variant: Variant = "chat_v2"
    map: Map = "statistics"
    maps: tuple[Map, ...] = ("exact", "mined", "statistics")
    pieces: Pieces = "bytes"
    ms_weight: Weight = "inverse"
    align: Method = "dp"
    hard: bool = False
    one_to_many: bool = True
    both: bool = False
    max_length: int = 2048
    max_texts: int = 0
    worst: int = 15


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


def group_rows(found: Coverage) -> list[dict[str, Any]]:
    return [
        {
            "texts": g.group, "pivot tokens": g.pivot_tokens, "source tokens": g.source_tokens,
            **{name: f"{g.rules[name]:.3f}" for name in RULE_NAMES}, "unmapped": f"{g.unmapped:.3f}",
            "other text": f"{g.altered:.3f}",
        }
        for g in found.groups
    ]  # fmt: skip


def worst_rows(found: Coverage) -> list[dict[str, Any]]:
    return [
        {
            "pivot token": _shown(w.piece), "falls back": w.fallbacks, "of": w.occurrences,
            "the source had": " ".join(map(_shown, w.example)) or "nothing", "in": w.group,
        }
        for w in found.worst
    ]  # fmt: skip


def _shown(piece: str) -> str:
    """A piece as code in a table's cell: a bar or a back-tick would end it."""
    return "`" + repr(piece)[1:-1].replace("`", "'").replace("|", "\u00a6") + "`"


def image_rows(images: Mapping[str, Images]) -> list[dict[str, Any]]:
    return [
        {
            "map": kind, "pieces without image": f"{i.unmapped_types:.4f}",
            "pieces to other text": f"{i.altered_types:.4f}", "tokens without image": f"{i.unmapped:.4f}",
            "tokens to other text": f"{i.altered:.4f}",
        }
        for kind, i in images.items()
    ]  # fmt: skip


def altered_rows(images: Mapping[str, Images]) -> list[dict[str, Any]]:
    return [
        {"map": kind, "source token": _shown(e.piece), "its image": _shown(e.image_piece), "occurs": e.occurrences,
         "ids": f"{e.id} to {e.image}"}
        for kind, i in images.items() for e in i.examples
    ]  # fmt: skip


def section(title: str, found: Coverage, images: Mapping[str, Images], picture: str) -> str:
    """A direction's part of the report."""
    parts = [
        f"## {title}", markdown_table(group_rows(found)), picture,
        "What becomes of the source's pieces under each map, as shares of its vocabulary and of its tokens in these "
        "texts:", markdown_table(image_rows(images)),
    ]  # fmt: skip
    if astray := altered_rows(images):
        parts += ["Tokens whose image is another text, the most frequent ones:", markdown_table(astray)]
    return "\n\n".join([
        *parts,
        "Tokens that fall back most; what the source had is one example of what the cheapest path paired them with:",
        markdown_table(worst_rows(found)),
    ])  # fmt: skip


ABOUT = """Shares of the pivot's tokens by what they get: the source's row of the same token (exact), of one that ends
alike (suffix), of one of several tokens (one-to-many), only the next token of the text, which the row is to predict
(fallback), nothing (empty). Unmapped: share of the source's tokens without an image under the map; other text: of those
whose image is another text, so that a teacher who is sure of such a token has its mass go there."""


def check(s: Settings) -> None:
    """Settings that do not go together, told before anything is computed."""
    if s.hard and (s.variant != "chat_v2" or s.map != "exact"):
        raise InputError("goes with chat_v2 and the exact map only", field="--hard", cure="Leave it out")
    least_of = {"--max-length": (s.max_length, 1), "--max-texts": (s.max_texts, 0), "--worst": (s.worst, 0)}
    for name, (value, least) in least_of.items():
        if value < least:
            raise InputError(f"{value} is too small", field=name, cure=f"Give {least} or more")


def main(s: Settings) -> None:
    check(s)
    pivot, source = side_of(s.pivot, "--pivot"), side_of(s.source, "--source")
    groups = read_groups(s.texts, s.max_texts)
    with open_run(s.out, to_json(s), resume=s.resume) as run:
        write_report(s, run, pivot, source, groups)
        run.finish()


def write_report(s: Settings, run: RunFolder, pivot: Side, source: Side, groups: Groups) -> None:
    """Measure both directions; report.md, its pictures, report.json."""
    parts, values = [], []
    for number, (ours, theirs) in enumerate([(pivot, source), (source, pivot)][: 1 + s.both]):
        title = f"{ours.name} \u2190 {theirs.name}"
        found, images = measure(s, ours, theirs, groups)
        figure = shares_figure({g.group: g.rules for g in found.groups}, xlabel=f"share of pivot tokens, {title}")
        picture = save_figure(figure, run.file("coverage_reversed.png" if number else "coverage.png"))
        parts.append(section(title, found, images, picture))
        values.append({"pivot": ours.name, "source": theirs.name, **as_json(found, images)})
        tables = "\n\n".join(map(markdown_table, (group_rows(found), image_rows(images))))
        run.console.print(f"{title}\n{tables}\n", soft_wrap=True, markup=False, highlight=False)
    how = f"Rules {s.variant}, map {s.map}, alignment {s.align}, pieces compared as {s.pieces}."
    report = "\n\n".join(["# Coverage of a pair of tokenizers", ABOUT, how, *parts])
    run.file("report.md").write_text(report + "\n", encoding="utf-8")
    write_json(run.file("report.json"), {"settings": to_json(s), "directions": values})
    run.log(f"report: {run.file('report.md')}")


def as_json(found: Coverage, images: Mapping[str, Images]) -> dict[str, Any]:
    return {
        **found._asdict(), "groups": [{**g._asdict(), "taken": g.taken} for g in found.groups],
        "worst": [w._asdict() for w in found.worst],
        "images": {
            kind: {**i._asdict(), "examples": [e._asdict() for e in i.examples]} for kind, i in images.items()
        },
    }  # fmt: skip


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
