"""Where words begin, for tokenizers of many makes."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusion_jax.cool.texts import Held, begin, common_starts, encode_behind, written
from fusion_jax.cool.words import Words, common, finished

TEXT = "The cat, 27 dogs\nand  a bird"
PIECES = ["The", "cat", ",", "27", "dogs", "and", "a", "bird"]


def words_of(pieces: list[str], *, marker: str, normalizer=None, splitter=None) -> Words:
    """A tokenizer of whole words and of single characters; `marker` stands for a space in its pieces."""
    letters = sorted({c for c in TEXT.replace(" ", "")} | {marker, "\n", "x"})
    vocab = {piece: n for n, piece in enumerate(["<unk>", *letters, *(marker + piece for piece in pieces)])}
    made = Tokenizer(models.Unigram([(piece, 0.0 if len(piece) == 1 else -float(len(piece) > 1)) for piece in vocab], 0))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    made.decoder = decoders.Replace(marker, " ")
    return Words(PreTrainedTokenizerFast(tokenizer_object=made))


def byte_level() -> Words:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Words(PreTrainedTokenizerFast(tokenizer_object=made))


def gemma_like() -> Words:
    """Spaces become markers before they could be split at."""
    return words_of(
        PIECES, marker="▁", normalizer=normalizers.Replace(" ", "▁"),
        splitter=pre_tokenizers.Split(" ", "merged_with_previous"),
    )  # fmt: skip


def llama2_like() -> Words:
    """No pre-tokenizer, a space in front."""
    made = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return words_of(PIECES, marker="▁", normalizer=made)


def test_white_space_belongs_to_the_word_behind_it():
    every = [byte_level(), gemma_like(), llama2_like()]
    spaces = [3, 8, 11, 21, 23]  # " cat", " 27", " dogs", "  a", " bird"
    found = [one.starts(TEXT) for one in every]
    assert found[0] == [3, 7, 8, 11, 16, 20, 23] or set(spaces) - {21} <= set(found[0])
    for starts in found:
        assert {3, 8, 11} <= set(starts) and 0 not in starts and max(starts) < len(TEXT)
        assert all(TEXT[place - 1] not in " \n" for place in starts)
    assert common(found) == [p for p in found[0] if p in found[1] and p in found[2]]
    assert every[1].splits is False and every[0].splits is True


def test_a_window_of_words_gives_the_tokens_of_the_whole_text():
    words = [byte_level(), gemma_like(), llama2_like()]
    prompt = "The cat and a bird and 27 dogs and a cat"
    held = [Held(prompt, 0, one.encode([prompt])[0]) for one in words]
    text = begin(words, held)
    assert text.window is not None and text.window < 0 and text.shared
    for number, one in enumerate(words):
        for segment in (" and", ", a bird", "s"):
            assert encode_behind(one, number, [(text, segment)]) == one.encode([prompt + segment])
        ids = one.encode([" bird"])[0].ids
        before, after = one.decode([held[number].tokens.ids, (*held[number].tokens.ids, *ids)])
        assert written(one, number, [(text, ids)]) == [after[len(before) :]]
    assert common_starts(words, text, " and a") == [p for p in common_starts(words, text, " and a ") if p < 6]


def test_half_a_character_is_not_written():
    (ids,) = byte_level().encode(["é水"])
    one = byte_level()
    assert [finished(text) for text in one.decode([ids.ids[:n] for n in range(6)])] == ["", "", "é", "é", "é", "é水"]


@pytest.mark.parametrize("make", [byte_level, gemma_like, llama2_like])
def test_tokens_that_continue_a_word(make):
    one = make()
    size = one.backend.get_vocab_size()
    found = one.continues(size + 3)
    said = [text[1:] for text in one.decode([(*one.encode(["a"])[0].ids, number) for number in range(size)])]
    assert found[size:].sum() == 0 and 0 < found.sum() < size
    assert all(not text[:1].isspace() for text, letter in zip(said, found) if letter)
