"""Vocabulary maps between real tokenizers: how much keeps its text when pieces are compared as raw strings, as bytes.

    python experiments/benchmarks/vocabulary.py --tokenizers llama2.model llama3.tiktoken SMOLLM2 GEMMA3 \
        --texts tinyshakespeare.txt gsm8k.jsonl chinese.tsv french.yml --maps exact mined

For every ordered pair (pivot and source), map and comparison: the share of the source's pieces whose image is the same
text, another text, or none; and of the source's tokens in the texts the share whose image is the same text, by script:
what is left of a teacher that is sure of each next token. A token counts for the script of the character that it is of,
or of its first visible one. With --alignments True also, by file of texts, the share of the pivot's tokens whose source
tokens under chat_v2's edit distances lie among those that the characters' offsets give. Tokenizers: as in
align_report.py. Texts: every line of a file is one; of .jsonl, every text in a record. Time on 2 CPU cores: a second a
pair for the exact map; for the mined one up to 10 s for 128,000 pieces onto 32,000, and minutes for Gemma's 262,144
onto a small vocabulary. Result: tables, JSON in --out.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from experiments.align_report import Map
from fusion_jax.align.coverage import NamedTokenizer, align_texts
from fusion_jax.align.matching import altered
from fusion_jax.align.settings import AlignSettings
from fusion_jax.align.views import Pieces
from fusion_jax.align.vocabulary import VocabMap, count_pairs
from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.runs.tokenizer_pairs import named_tokenizer
from fusion_jax.settings import run as run_experiment

SCRIPTS = ("letters", "digits", "punctuation", "spaces", "newlines and tabs", "accents", "Chinese", "other")
Counts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """tokenizers: at least two, each a pivot and a source of each other. texts: files, empty for the vocabularies only.

    maps: which ones; statistics are counted on the texts. alignments: tell how many are right. characters: read of
    each file.
    """

    tokenizers: tuple[str, ...] = ("zoo:target", "zoo:gemma-source")
    texts: tuple[str, ...] = ()
    maps: tuple[Map, ...] = ("exact", "mined")
    alignments: bool = False
    characters: int = 200_000
    out: str = ""


def lines_of(file: str, characters: int) -> list[str]:
    """The texts of a file, as many as hold so many characters."""
    path, out, left = Path(file), [], characters
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as text ({error})", file=file, cure="Give a text file in UTF-8") from None
    for line in lines:
        texts = strings_of(json.loads(line)) if path.suffix == ".jsonl" else [line + "\n"]
        for text in texts:
            if left > 0:
                out.append(text[:left])
                left -= len(text)
    return out


def strings_of(value: Any) -> Iterator[str]:
    """The texts in a record."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings_of(inner)


def script_of(text: str) -> str:
    """The script of a token's text, by its first visible character."""
    visible = text.lstrip(" \u2581")
    if not visible:
        return "spaces"
    letter = visible[0]
    if letter in "\n\r\t":
        return "newlines and tabs"
    if "\u3000" <= letter <= "\u9fff" or "\uff00" <= letter <= "\uffef":
        return "Chinese"
    if letter.isdigit():
        return "digits"
    if letter.isalpha():
        if visible.isascii():
            return "letters"
        return "accents" if any("LATIN" in unicodedata.name(c, "") for c in visible if not c.isascii()) else "other"
    return "punctuation" if unicodedata.category(letter)[0] in "PS" and ord(letter) < 0x2100 else "other"


def counted(side: NamedTokenizer, texts: Sequence[str]) -> Counts:
    """How often each id stands for each script: int64[size]."""
    out = {script: np.zeros(side.view.size, np.int64) for script in SCRIPTS}
    for text in texts:
        encoded = side.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for number, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            out[script_of(text[start:end])][number] += 1
    return out


def made(kind: Map, pieces: Pieces, pivot: NamedTokenizer, source: NamedTokenizer, texts: Sequence[str]) -> VocabMap:
    """The map; the statistics with the published weight where strings are compared."""
    how = AlignSettings(vocabulary=kind, ms_weight="code" if pieces == "raw" else "inverse", pieces=pieces)
    aligned = align_texts(texts, pivot, source, how.rules, pieces=pieces) if kind == "statistics" else []
    views = pivot.view, source.view
    return how.make_map(views, count_pairs(aligned, *views))


def row_of(
    kind: Map, pieces: Pieces, pivot: NamedTokenizer, source: NamedTokenizer, texts: Sequence[str], counts: Counts
) -> dict[str, Any]:
    """One map of one pair: shares of the source's pieces and, by script, of its tokens."""
    start = time.perf_counter()
    ids = made(kind, pieces, pivot, source, texts).ids
    seconds = time.perf_counter() - start
    there = np.asarray([bool(piece) for piece in source.view.pieces])
    astray = altered(ids, pivot.view, source.view)
    kept = (ids >= 0) & ~astray
    shares = {s: float(n[kept].sum() / n.sum()) for s, n in counts.items() if n.sum()}
    return {
        "pivot": Path(pivot.name).name, "source": Path(source.name).name, "map": kind, "compared as": pieces,
        "seconds": round(seconds, 1), "same text": float(kept[there].mean()), "other text": float(astray[there].mean()),
        "no image": float((ids < 0)[there].mean()), **shares,
    }  # fmt: skip


def agreement(pieces: Pieces, pivot: NamedTokenizer, source: NamedTokenizer, texts: Sequence[str]) -> float:
    """Share of the pivot's tokens, of those that have offsets in common, that are aligned as the offsets say."""
    found = align_texts(texts, pivot, source, "chat_v2", pieces=pieces)
    true = align_texts(texts, pivot, source, "chat_v2", method="byte_offsets")
    right = tokens = 0
    for a, b in ((x.alignment, y.alignment) for x, y in zip(found, true, strict=True)):
        known = b.first >= 0
        right += int(((a.first >= b.first) & (a.last <= b.last))[known].sum())
        tokens += int(known.sum())
    return right / max(tokens, 1)


def main(s: Settings) -> None:
    if len(s.tokenizers) < 2:
        raise InputError(f"there are {len(s.tokenizers)}", field="--tokenizers", cure="Give two or more")
    if "statistics" in s.maps and not s.texts:
        raise InputError("are counted on texts", field="--maps", cure="Give --texts, or leave statistics out")
    files = {file: lines_of(file, s.characters) for file in s.texts}
    texts = [text for some in files.values() for text in some]
    sides = [named_tokenizer(name, "--tokenizers") for name in s.tokenizers]
    counts = {side.name: counted(side, texts) for side in sides}
    modes: tuple[Pieces, ...] = ("raw", "bytes")
    rows = []
    for pivot, source in permutations(sides, 2):
        for kind in s.maps:
            rows += [row_of(kind, mode, pivot, source, texts, counts[source.name]) for mode in modes]
            print(markdown_table([shown(row) for row in rows[-2:]]), flush=True)
    print(markdown_table([shown(row) for row in rows]))
    if s.alignments:
        print(markdown_table([
            {"pivot": Path(a.name).name, "source": Path(b.name).name, "compared as": mode}
            | {Path(file).name: f"{agreement(mode, a, b, some):.3f}" for file, some in files.items()}
            for a, b in permutations(sides, 2) for mode in modes
        ]))  # fmt: skip
    if s.out:
        Path(s.out).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a table: shares with three digits, every script."""
    numbers = {k: f"{v:.3f}" if isinstance(v, float) and k != "seconds" else v for k, v in row.items()}
    return numbers | {script: numbers.get(script, "") for script in SCRIPTS}


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
