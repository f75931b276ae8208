"""Chinese grammatical error correction in small: a training list, development and test sentences, and tokenizers.

The training list has MuCGEC's form: first many pairs by annotators who do more than they should ("lang8": they also
turn rare wordings that are right into usual ones), then fewer pairs by careful ones, several times over ("hsk"). Unless
asked for, none is without an error, so that a corrector is never told to leave a sentence alone. Part of the
development and test sentences are right, and some of these have rare wordings: how many of them a corrector changes is
its rate of over-correction. No sentence is on two sides: a hash of its right and usual form decides the side.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from fusion_jax.correction.pairs import Pair, Sentence, training_list, write_pairs, write_para
from fusion_jax.correction.prompts import TEMPLATES
from fusion_jax.errors import InputError
from fusion_jax.jsonl import write_jsonl
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.paths import as_path
from fusion_jax.settings import bounded, seeded
from fusion_jax.zoo.chinese_errors import Kind, broken
from fusion_jax.zoo.chinese_errors import characters as characters_of_errors
from fusion_jax.zoo.chinese_grammar import Word, sentence, spelled
from fusion_jax.zoo.chinese_grammar import characters as characters_of_sentences
from fusion_jax.zoo.tokenizers import SPECIALS, bert_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
Side = Literal["test", "dev", "train"]
MOST_DRAWS = 200  # sentences drawn for one that is taken


@dataclass(frozen=True)
class ChineseSettings:
    """What the corpus is made of."""

    lang8: int = 12_000
    """Pairs of the first part of the training list."""
    hsk: int = 800
    """Pairs of its second part."""
    copies: int = 5
    """How often the second part stands in it."""
    dev: int = 400
    """Development sentences."""
    test: int = 1_000
    """Test sentences."""
    right: float = 0.3
    """Share of the development and test sentences that have no error."""
    odd: float = 0.5
    """Share of these that have a rare wording."""
    two: float = 0.3
    """Share of the wrong sentences that have two errors."""
    rewritten: float = 0.5
    """Probability that a pair of the first part also turns its rare wordings into usual ones."""
    unchanged: float = 0.0
    """Share of the training pairs that have no error and stay as they are."""
    longest: int = 40
    """Characters that a sentence, wrong or right, may have."""
    seed: int = 0
    """Decides sentences, errors and order."""

    def __post_init__(self) -> None:
        bounded(self, "lang8", "hsk", "copies", "dev", "test", least=1)
        bounded(self, "longest", least=12)
        bounded(self, "right", "odd", "two", "rewritten", "unchanged", least=0, most=1)
        seeded(self, "seed")


@dataclass(frozen=True)
class Made:
    """A sentence to correct, the kinds of its errors, and whether it has a rare wording that is right."""

    sentence: Sentence
    kinds: tuple[Kind, ...]
    rare: bool


@dataclass(frozen=True)
class Corpus:
    """train: lang8, then the copies of hsk; of these only the pairs with errors, unless `unchanged`."""

    train: list[Pair]
    dev: list[Made]
    test: list[Made]


def corpus(settings: ChineseSettings | None = None) -> Corpus:
    """The corpus of a seed.

    Raises:
      InputError: more sentences than the grammar has.
    """
    s = settings or ChineseSettings()
    rng = [np.random.default_rng([s.seed, number]) for number in range(5)]
    lang8 = _different(s.lang8, "lang8", lambda: _pair(s, s.rewritten, rng[0]))
    hsk = _different(s.hsk, "hsk", lambda: _pair(s, 0.0, rng[1]))
    train, _ = training_list(lang8, hsk, copies=s.copies)
    unchanged = rng[4].random(len(train)) < s.unchanged
    train = [_unchanged(rng[4]) if leave else pair for pair, leave in zip(train, unchanged)]
    return Corpus(train, _sentences(s, "dev", s.dev, rng[2]), _sentences(s, "test", s.test, rng[3]))


def write_corpus(folder: str | os.PathLike[str], settings: ChineseSettings | None = None) -> Corpus:
    """The corpus as files: train.json (pairs), dev.para, test.para (references), and test.jsonl, which tells for each
    test sentence which errors it has and whether it has a rare wording."""
    made, place = corpus(settings), as_path(folder)
    place.mkdir(parents=True, exist_ok=True)
    write_pairs(place / "train.json", made.train)
    for side, sentences in (("dev", made.dev), ("test", made.test)):
        write_para(place / f"{side}.para", [one.sentence for one in sentences])
    kinds = [{"id": m.sentence.name, "kinds": list(m.kinds), "rare": m.rare} for m in made.test]
    write_jsonl(place / "test.jsonl", kinds)
    return made


def right_sentences(count: int, seed: int) -> list[str]:
    """Different right sentences of the training side, rare wordings among them: text to raise a model on."""
    rng = np.random.default_rng([seed, 5])
    return _different(count, "count", lambda: spelled(_drawn("train", rng)))


def noised(sentences: Sequence[str], seed: int, share: float = 0.15) -> list[Pair]:
    """Sentences of which each character is left out or is another one with probability `share`, and as they were: what
    a BART is raised on."""
    rng, known, out = np.random.default_rng([seed, 6]), characters(), []
    for text in sentences:
        kinds = rng.choice(3, len(text), p=(1 - share, share / 2, share / 2))
        others = rng.choice(known, len(text))
        broken_text = "".join(c if k == 0 else str(o) if k == 2 else "" for c, k, o in zip(text, kinds, others))
        out.append(Pair(broken_text or text, text))
    return out


def _side(words: Sequence[Word]) -> Side:
    """By a hash of the usual form, so that two wordings of one sentence are on one side."""
    number = zlib.crc32(spelled(words, usual=True).encode()) % 10
    return "test" if number == 0 else "dev" if number == 1 else "train"


def _drawn(side: Side, rng: np.random.Generator) -> tuple[Word, ...]:
    """A right sentence of a side."""
    while True:
        words = sentence(rng)
        if _side(words) == side:
            return words


def _different(count: int, field: str, draw: Callable[[], T | None]) -> list[T]:
    """So many different things that `draw` gives; None is none."""
    out = dict[T, None]()
    for _ in range(MOST_DRAWS * count):
        if len(out) == count:
            break
        one = draw()
        if one is not None:
            out[one] = None
    if len(out) < count:
        raise InputError(f"there are fewer than {count}", field=field, cure=f"Ask for at most {len(out)}")
    return list(out)


def _pair(s: ChineseSettings, rewritten: float, rng: np.random.Generator) -> Pair | None:
    """A wrong sentence with an annotator's correction: any of those that are right, or one in the usual wording."""
    words, usual = _drawn("train", rng), rng.random() < rewritten
    wrong = broken(words, _errors(s, rng), rng)
    right = wrong.references[rng.integers(len(wrong.references))]
    target = spelled(words, usual=True) if usual else right
    short = max(len(wrong.source), len(target)) <= s.longest
    return Pair(wrong.source, target) if wrong.kinds and wrong.source != target and short else None


def _unchanged(rng: np.random.Generator) -> Pair:
    text = spelled(_drawn("train", rng))
    return Pair(text, text)


def _errors(s: ChineseSettings, rng: np.random.Generator) -> int:
    return 2 if rng.random() < s.two else 1


def _sentences(s: ChineseSettings, side: Side, count: int, rng: np.random.Generator) -> list[Made]:
    """Different sentences of a side, shuffled."""
    right = round(s.right * count)
    odd, seen = round(s.odd * right), set[str]()

    def new(made: Made | None) -> Made | None:
        if made is None or made.sentence.source in seen:
            return None
        seen.add(made.sentence.source)
        return made

    found = [
        *_different(odd, side, lambda: new(_made(s, side, 0, True, rng))),
        *_different(right - odd, side, lambda: new(_made(s, side, 0, False, rng))),
        *_different(count - right, side, lambda: new(_made(s, side, _errors(s, rng), None, rng))),
    ]
    order = rng.permutation(count)
    return [replace(found[i], sentence=replace(found[i].sentence, name=str(n))) for n, i in enumerate(order, 1)]


def _made(
    s: ChineseSettings, side: Side, errors: int, rare: bool | None, rng: np.random.Generator
) -> Made | None:
    """A sentence with errors or, where there are to be none, without, and with a rare wording or without, as asked."""
    words = _drawn(side, rng)
    wrong, has = broken(words, errors, rng), any(word.rare for word in words)
    if bool(wrong.kinds) != bool(errors) or rare not in (None, has):
        return None
    if max(map(len, (wrong.source, *wrong.references))) > s.longest:
        return None
    return Made(Sentence("", wrong.source, wrong.references), wrong.kinds, has)


def characters() -> list[str]:
    """Every character of the sentences and of their errors, in the order of their code points."""
    return sorted({*characters_of_sentences(), *characters_of_errors()})


def wordpiece() -> PreTrainedTokenizerFast:
    """A tokenizer as Chinese BART models have it, each character a token of its own; spaces, tabs and ends of lines are
    lost."""
    return bert_tokenizer((*SPECIALS, *characters()))


def by_character() -> PreTrainedTokenizerFast:
    """A tokenizer for a decoder alone: each character is a token, tabs and ends of lines as well, and each Latin word
    of the prompts; what it knows it gives back exactly."""
    known = {*characters(), *TEMPLATES.correct, *TEMPLATES.align, "\t", "\n", ":"}
    single = sorted(c for c in known if not c.isascii() or not c.isalpha())
    words = ("<pad>", "<unk>", "<s>", "</s>", "Input", "Output", *single)
    vocabulary = {token: i for i, token in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def bart(tokenizer: PreTrainedTokenizerFast, *, width: int = 96, layers: int = 2, positions: int = 128) -> ModelConfig:
    """A small BART for `wordpiece`: the decoder begins with [SEP], as that of Chinese BART models."""
    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": width // 32, f"{side}_ffn_dim": 4 * width}
    return config_from_hf({
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": width, "max_position_embeddings": positions,
        "init_std": 0.05, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id, "decoder_start_token_id": tokenizer.sep_token_id, **sizes,
    })  # fmt: skip


def llama(tokenizer: PreTrainedTokenizerFast, *, width: int = 96, layers: int = 3, positions: int = 256) -> ModelConfig:
    """A small decoder alone for `by_character`."""
    return config_from_hf({
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": width, "num_hidden_layers": layers,
        "intermediate_size": 8 * width // 3 // 32 * 32, "num_attention_heads": width // 32, "head_dim": 32,
        "num_key_value_heads": width // 32, "max_position_embeddings": positions, "initializer_range": 0.05,
        "tie_word_embeddings": True, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    })  # fmt: skip
