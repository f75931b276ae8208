"""Vocabulary maps of real tokenizers, from a folder of model folders (FUSION_JAX_REAL_MODELS), where there is one."""

from __future__ import annotations

import functools
import os
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from fusion_jax.align.matching import altered
from fusion_jax.align.sequences import align
from fusion_jax.align.views import TokenizerView, view_of
from fusion_jax.align.vocabulary import count_pairs, exact_map, mapping_statistics, mined_map
from fusion_jax.data.raw_tokenizers import load_raw_tokenizer
from fusion_jax.models.folder import load_tokenizer

FOLDERS = ("smollm2", "gemma3", "qwen3", "llama31", "deepseekv3")  # as in a folder's name, but for its - _ and .
FILES = ("llama2.model", "mistral-v3.model", "llama3.tiktoken")
RAW = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
TEXT = "the cat\n\tsat on\n\nthe naïve café: 的，模型融合 é, 12.5%\n"
pytestmark = pytest.mark.real


@functools.cache
def side(name: str) -> tuple[PreTrainedTokenizerBase, TokenizerView]:
    if name in FILES:
        if not (RAW / name).exists():
            pytest.skip(f"shared/data/tokenizers/{name} is not there")
        tokenizer: PreTrainedTokenizerBase | None = load_raw_tokenizer(RAW / name)
    else:
        root = os.environ.get("FUSION_JAX_REAL_MODELS")
        if not root:
            pytest.skip("FUSION_JAX_REAL_MODELS names no folder of real models")
        folders = sorted(p.parent for p in Path(root).glob("*/tokenizer.json"))
        found = [f for f in folders if name in re.sub(r"[\W_]", "", f.name.lower())]
        if not found:
            pytest.skip(f"no folder with a tokenizer in {root} is called like {name}")
        tokenizer = load_tokenizer(found[0])
    assert tokenizer is not None
    return tokenizer, view_of(tokenizer)


def view(name: str) -> TokenizerView:
    return side(name)[1]


GEMMA_TO_SMOLLM2 = {
    "\n": 198, "<0x0A>": 198, "\t": 197, "，": 12831, "的": 11567, "é": 2756,
}  # fmt: skip
SMOLLM2_TO_GEMMA = {"Ċ": 107, "çļĦ": 236918, "Ã©": 236859, "ĉ": 255968, "ï¼Į": 236900}


@pytest.mark.parametrize(
    ("pivot", "source", "table"), [("smollm2", "gemma3", GEMMA_TO_SMOLLM2), ("gemma3", "smollm2", SMOLLM2_TO_GEMMA)]
)
def test_newline_tab_chinese_and_accents(pivot, source, table):
    ours, theirs = view(pivot), view(source)
    counts = count_pairs([_aligned(pivot, source)], ours, theirs)
    maps = [exact_map(ours, theirs), mapping_statistics(counts, ours, theirs)]
    for piece, image in table.items():
        number = theirs.pieces.index(piece)
        assert [m.ids[number] for m in maps] == [image, image], piece
    # Mined only for these pieces: all 262,144 take minutes.
    some = [theirs.pieces.index(piece) for piece in table]
    few = TokenizerView(
        tuple(theirs.pieces[i] for i in some), tuple(theirs.decoded[i] for i in some), theirs.mark,
        piece_bytes=tuple((theirs.piece_bytes or ())[i] for i in some),
    )  # fmt: skip
    np.testing.assert_array_equal(mined_map(ours, few).ids, list(table.values()))


def _aligned(pivot: str, source: str):
    ids = [side(name)[0](TEXT, add_special_tokens=False)["input_ids"] for name in (pivot, source)]
    return (*ids, align(*ids, view(pivot), view(source), "chat_v2"))


@pytest.mark.parametrize("name", (*FOLDERS, *FILES))
def test_a_text_is_what_its_pieces_spell(name):
    tokenizer, found = side(name)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    spelled = b"".join((found.piece_bytes or ())[i] or b"" for i in ids).decode()
    assert spelled.removeprefix(" ") == TEXT  # SentencePiece of Llama-2 begins a text with a space


@pytest.mark.parametrize(("pivot", "source"), list(permutations((*FOLDERS[:2], "llama2.model", "llama3.tiktoken"), 2)))
def test_no_exact_image_is_another_text(pivot, source):
    ours, theirs = view(pivot), view(source)
    raw, new = exact_map(ours, theirs, "raw").ids, exact_map(ours, theirs).ids
    assert not altered(new, ours, theirs).any()
    kept = (raw >= 0) & ~altered(raw, ours, theirs)
    named = np.asarray([theirs.is_control(i) for i in range(theirs.size)])
    assert (new >= 0)[kept & ~named].all() and (new >= 0).sum() >= kept.sum()
