"""What pieces spell, and maps, alignments and rows that compare it: miniatures of real tokenizers' structure."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusion_jax.align.coverage import NamedTokenizer, align_texts, coverage
from fusion_jax.align.distributions import TopRows, align_distributions
from fusion_jax.align.matching import altered
from fusion_jax.align.rules import RowRule, Rules
from fusion_jax.align.sequences import align
from fusion_jax.align.views import TokenizerView, fingerprint, view_of
from fusion_jax.align.vocabulary import (
    VocabMap,
    cooccurrence_map,
    count_pairs,
    exact_map,
    load_map,
    mapping_statistics,
    mined_map,
)
from fusion_jax.data.spelling import BYTE_PIECES, Notation, byte_letters
from fusion_jax.errors import InputError
from tests.align.test_properties import NAMES, side

WORDS = ["the", " the", "on", "not", " ma", " me", "é", " é", "的", "，", "\n\n", "mé"]
TEXT = "the mé\n\tnot é 的的，on the\n\nme 饕 the é\n"


def letters(text: str | bytes) -> str:
    spelled = text.encode() if isinstance(text, str) else text
    return "".join(byte_letters()[byte] for byte in spelled)


def merges_of(pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to put each piece together of two others, shorter ones first."""
    known = set(pieces)
    return [(p[:at], p[at:]) for p in sorted(pieces, key=len) for at in range(1, len(p)) if {p[:at], p[at:]} <= known]


def prefixes(words: list[str]) -> list[str]:
    """The words and all their beginnings, each once."""
    return list(dict.fromkeys(word[:n] for word in words for n in range(1, len(word) + 1)))


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as SmolLM2, Qwen or Llama-3: each byte is a letter; added tokens are literal."""
    pieces = list(dict.fromkeys([*byte_letters(), *prefixes([letters(w) for w in WORDS])]))
    pieces = ["<|end|>", *pieces]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges_of(pieces[1:])))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\p{L}+|\s"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([
        AddedToken("<|end|>", special=True, normalized=False), AddedToken("naïve", normalized=False),
        AddedToken("<think>", normalized=False), AddedToken("<|im_start|>", special=True, normalized=False),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@functools.cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """BPE with byte fallback, as Gemma: a mark for spaces, and bytes beside pieces of the same text."""
    words = [w.replace(" ", "▁") for w in [*WORDS, "\n", "\t", "Ċ", "ĉ", "!", "0", "J", "a"]]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted(BYTE_PIECES), *prefixes(words), *"▁heotnam"]
    vocabulary = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
    bpe = models.BPE(
        vocab=vocabulary, merges=merges_of([p for p in vocabulary if p[0] != "<"]), unk_token="<unk>",
        byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([
        *(AddedToken(p, special=True, normalized=False) for p in ("<pad>", "<eos>", "<bos>", "<unk>")),
        *(AddedToken(p, normalized=False) for p in ("\n", "\n\n", "<think>", "<|im_start|>", "▁naïve")),
    ])  # fmt: skip
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@functools.cache
def views() -> tuple[TokenizerView, TokenizerView]:
    return view_of(byte_level()), view_of(sentencepiece())


def pieces_of(ids: np.ndarray, pivot: TokenizerView, source: TokenizerView) -> dict[str, str | None]:
    return {p: pivot.pieces[i] if i >= 0 else None for p, i in zip(source.pieces, ids.tolist()) if p}


SAME = [("\n", "Ċ"), ("\t", "ĉ"), ("，", letters("，")), ("的", letters("的")), ("é", letters("é")), ("▁é", letters(" é")),
        ("▁the", "Ġthe"), ("\n\n", "ĊĊ"), ("the", "the")]  # fmt: skip


def map_of(kind: str, pivot: TokenizerView, source: TokenizerView, rows: list[list[int]]) -> VocabMap:
    if kind == "cooccurrence":
        return cooccurrence_map(pivot, source, rows[:1], rows[1:])
    if kind == "statistics":
        counts = count_pairs([(*rows, align(*rows, pivot, source, "chat_v2"))], pivot, source)
        return mapping_statistics(counts, pivot, source)
    return (exact_map if kind == "exact" else mined_map)(pivot, source)


@pytest.mark.parametrize("kind", ["exact", "mined", "cooccurrence", "statistics"])
def test_every_map_sends_a_piece_to_the_same_text_in_both_directions(kind):
    """Newline, tab, Chinese, accents: none of them is the same string in the two notations."""
    rows = [t(TEXT, add_special_tokens=False)["input_ids"] for t in (byte_level(), sentencepiece())]
    byte, piece = views()
    found = map_of(kind, byte, piece, rows)
    image = pieces_of(found.ids, byte, piece)
    assert found.pieces == "bytes" and [image[theirs] for theirs, _ in SAME] == [ours for _, ours in SAME]
    assert image["<0x0A>"] == "Ċ" and image["<0x09>"] == "ĉ" and image["<0xE9>"] == letters(b"\xe9")
    image = pieces_of(map_of(kind, piece, byte, rows[::-1]).ids, piece, byte)
    assert [image[theirs] for _, theirs in SAME] == [ours for ours, _ in SAME]
    # The tokenizer's own piece, not the byte that stands in where there is none, nor a letter of that code point.
    assert image["a"] == "a" and image["é"] == "<0xE9>"


def test_raw_strings_stay_under_their_name():
    pivot, source = views()
    exact, mined = (pieces_of(m(pivot, source, "raw").ids, pivot, source) for m in (exact_map, mined_map))
    assert exact["\n"] is None and exact["é"] == "é" and exact["Ċ"] == "Ċ" and exact["的"] is None
    assert mined["\n"] not in ("Ċ", None) and exact_map(pivot, source, "raw").pieces == "raw"
    with pytest.raises(InputError, match="Known: bytes, raw"):
        exact_map(pivot, source, "text")  # type: ignore[arg-type]


def test_what_has_nothing_in_common_goes_to_what_the_pivot_writes_first():
    """A character that the pivot has only as bytes becomes its first byte, never an unrelated character."""
    pivot, source = views()
    texts = TokenizerView(
        ("饕", "▁饕", "的饕", "▁thee", "xxxx", "Ж"), ("",) * 6, "▁",
        piece_bytes=tuple(t.encode() for t in ("饕", " 饕", "的饕", " thee", "xxxx", "Ж")),
    )  # fmt: skip
    image = pieces_of(mined_map(pivot, texts).ids, pivot, texts)
    assert image["饕"] == letters("饕".encode()[:1]) and image["▁饕"] == "Ġ"
    assert image["的饕"] == letters("的") and image["▁thee"] == "Ġthe"
    assert image["xxxx"] == "x" and image["Ж"] == letters("Ж".encode()[:1])
    bare = TokenizerView(("a", "b"), ("a", "b"), "▁", piece_bytes=(b"a", b"b"))
    np.testing.assert_array_equal(mined_map(bare, texts).ids, -1)


def test_control_tokens_and_text_do_not_become_each_other():
    pivot, source = views()
    exact, mined = (pieces_of(m(pivot, source).ids, pivot, source) for m in (exact_map, mined_map))
    assert exact["<eos>"] is None and mined["<eos>"] == "<|end|>"  # by its role
    assert mined["<bos>"] is None and mined["<pad>"] is None
    assert exact["<think>"] == "<think>" and exact["<|im_start|>"] == "<|im_start|>"  # one is special, one is not
    text = TokenizerView(("<|end|>",), ("<|end|>",), "▁", piece_bytes=(b"<|end|>",))
    assert exact_map(pivot, text).ids.tolist() == [-1]
    assert pivot.pieces[mined_map(pivot, text).ids[0]] != "<|end|>"


def test_bytes_are_read_from_the_tokenizer():
    byte, piece = views()
    spelled = dict(zip(byte.pieces, byte.piece_bytes, strict=True))
    assert spelled["Ċ"] == b"\n" and spelled["é"] == b"\xe9" and spelled[letters("的")] == "的".encode()
    assert spelled["naïve"] == "naïve".encode() and spelled["<think>"] == b"<think>" and spelled["<|end|>"] is None
    spelled = dict(zip(piece.pieces, piece.piece_bytes, strict=True))
    assert spelled["<0x0A>"] == spelled["\n"] == b"\n" and spelled["▁the"] == b" the" and spelled["Ċ"] == "Ċ".encode()
    assert spelled["<bos>"] is None and spelled["<unk>"] is None and spelled["▁"] == b" "
    for tokenizer, view in ((byte_level(), byte), (sentencepiece(), piece)):
        ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        assert b"".join(view.piece_bytes[i] or b"" for i in ids).decode() == TEXT


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_of_a_text_spell_it(name):
    """The zoo's tokenizers, byte-level and not; SentencePiece may begin a text with a space."""
    tokenizer, view, _ = side(name)
    for text in ("Sort the letters: c, a, b", "add 12 and 30\nreverse  a b"):
        spelled = [(view.piece_bytes or ())[i] for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert b"".join(b or b"" for b in spelled).decode().removeprefix(" ") == text


def test_other_notations():
    words = {p: i for i, p in enumerate(["[UNK]", "the", "##the", ",", "的", "##é", "##"])}
    tokenizer = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    found = view_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))
    assert found.piece_bytes == (None, b" the", b"the", b",", "的".encode(), "é".encode(), b"##")
    assert Notation(word_end="</w>").bytes_of("the</w>") == b"the "
    marked = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("<0x0A>", -2.0)], unk_id=0))
    marked.pre_tokenizer = pre_tokenizers.Metaspace()
    found = view_of(PreTrainedTokenizerFast(tokenizer_object=marked, unk_token="<unk>"))
    assert found.piece_bytes == (None, b" a", b"<0x0A>")  # without byte fallback, that is text
    plain = Tokenizer(models.BPE(vocab={"Ġa": 0, "Ċ": 1, "b": 2}, merges=[]))  # says nothing of its notation
    assert view_of(PreTrainedTokenizerFast(tokenizer_object=plain)).piece_bytes == (b" a", b"\n", b"b")


@pytest.mark.parametrize("variant", ["fusellm", "chat_v1", "chat_v2"])
def test_tokens_of_the_same_text_are_aligned_and_take_their_rows(variant):
    """Newline, tab, Chinese and accents stand across from each other, whichever tokenizer is the pivot."""
    text = "the\n的，\té not\n的\n"
    for swap in (False, True):
        (ours, pivot), (theirs, source) = [
            (t(text, add_special_tokens=False)["input_ids"], v)
            for t, v in zip((byte_level(), sentencepiece()), views())
        ][:: -1 if swap else 1]
        assert len(ours) == len(theirs)
        found = align(ours, theirs, pivot, source, variant)
        np.testing.assert_array_equal(found.first, np.arange(len(ours)))
        assert found.cost == 0
        assert variant == "chat_v2" or align(ours, theirs, pivot, source, variant, "raw").cost > 0
        counts = count_pairs([(ours, theirs, found)], pivot, source)
        rules = Rules(pivot, source, exact_map(pivot, source), variant, counts=counts)
        logits = np.zeros((len(theirs), 1), np.float32)
        rows = TopRows(np.asarray(theirs)[:, None], logits, np.ones(len(theirs), int))
        made = align_distributions(rows, found, ours, theirs, rules)
        assert set(made.rule.tolist()) == {RowRule.ONE_TO_ONE}
        np.testing.assert_array_equal(made.ids[:, 0], ours)
        raw = Rules(pivot, source, exact_map(pivot, source, "raw"), variant, counts=counts, pieces="raw")
        assert RowRule.FALLBACK in align_distributions(rows, found, ours, theirs, raw).rule or variant == "chat_v2"


def test_bytes_of_one_character_take_the_row_of_the_last():
    """的 of the pivot stands across from three bytes, two of them equal in the second character."""
    source = TokenizerView(("<0xE9>", "<0xA9>"), ("\ufffd",) * 2, "▁", piece_bytes=(b"\xe9", b"\xa9"))
    pivot = TokenizerView(("驩",), ("驩",), "▁", piece_bytes=("驩".encode(),))
    assert "驩".encode() == b"\xe9\xa9\xa9"
    found = align([0], [0, 1, 1], pivot, source, "chat_v2")
    rows = TopRows(np.asarray([[0], [0], [1]]), np.asarray([[1.0], [2.0], [3.0]]), np.ones(3, int))
    known = exact_map(pivot, source)
    rules = Rules(pivot, source, known, pairs=((1, 0),))
    made = align_distributions(rows, found, [0], [0, 1, 1], rules)
    assert made.rule.tolist() == [RowRule.ONE_TO_MANY] and made.logits.tolist() == [[3.0]]


def test_images_of_another_text_are_told():
    sides = NamedTokenizer(byte_level(), views()[0]), NamedTokenizer(sentencepiece(), views()[1])
    texts = align_texts([TEXT], *sides, "chat_v2")
    pivot, source = views()
    raw = coverage({"a": texts}, Rules(pivot, source, mined_map(pivot, source, "raw"), "fusellm", pieces="raw"))
    new = coverage({"a": texts}, Rules(pivot, source, mined_map(pivot, source), "fusellm"))
    assert raw.groups[0].unmapped == 0.0 and raw.groups[0].altered > 0.3
    assert raw.images.altered == raw.groups[0].altered and raw.images.altered_types > new.images.altered_types
    first = raw.images.examples[0]
    assert (first.piece, first.occurrences) == ("\n", 2) or first.occurrences >= 2
    assert {"\n", "的", "é"} & {e.piece for e in raw.images.examples}
    assert not {"\n", "的", "é"} & {e.piece for e in new.images.examples}
    assert altered(exact_map(pivot, source, "raw").ids, pivot, source).sum() > 0  # a letter, counted as exact
    assert altered(exact_map(pivot, source).ids, pivot, source).sum() == 0


def test_maps_say_what_they_compared(tmp_path):
    pivot, source = views()
    for pieces in ("bytes", "raw"):
        saved = exact_map(pivot, source, pieces)
        saved.save(tmp_path / f"{pieces}.json")
        found = load_map(tmp_path / f"{pieces}.json", pivot, source)
        np.testing.assert_array_equal(found.ids, saved.ids)
        assert found.pieces == pieces
    assert '"pieces": "bytes"' in (tmp_path / "bytes.json").read_text()
    assert '"pieces"' not in (tmp_path / "raw.json").read_text()  # as they were before there was a choice
    bare = TokenizerView(source.pieces, source.decoded, source.mark, source.bos, source.eos, source.unk, source.pad)
    assert fingerprint(source) == fingerprint(bare) == fingerprint(bare, "bytes") != fingerprint(source, "bytes")
    with pytest.raises(InputError, match="another source tokenizer"):
        load_map(tmp_path / "bytes.json", pivot, bare)


def test_a_view_without_bytes_is_compared_by_its_strings():
    strings = TokenizerView(("Ċ", "a"), ("\n", "a"), "Ġ")
    assert exact_map(strings, views()[1]).pieces == "raw"
    with pytest.raises(InputError, match="2 pieces but 1 spelled"):
        TokenizerView(("Ċ", "a"), ("\n", "a"), "Ġ", piece_bytes=(b"a",))
    with pytest.raises(InputError, match="'added': an id is not among the 2"):
        TokenizerView(("Ċ", "a"), ("\n", "a"), "Ġ", added=(2,))
