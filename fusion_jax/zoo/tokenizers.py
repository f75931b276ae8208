"""The zoo's tokenizers: four vocabularies of three kinds, trained on its own text, each with its own chat template; and
BERT's, of a vocabulary that is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATES: dict[str, str] = {
    "headers": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|sep|>{{ m['content'] | trim }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|sep|>{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "turns": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user and assistant') }}{% endif %}<turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}</turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "inst": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}
MARKS: dict[str, tuple[str, ...]] = {
    "headers": ("<s>", "</s>", "<pad>", "<|start|>", "<|sep|>", "<|end|>"),
    "chatml": ("<s>", "<|endoftext|>", "<pad>", "<|im_start|>", "<|im_end|>"),
    "turns": ("<bos>", "<eos>", "<pad>", "<turn>", "</turn>"),
    "inst": ("<s>", "</s>", "<pad>", "[INST]", "[/INST]"),
}
WordKind = Literal["t5", "bert"]
WORD_KINDS: dict[WordKind, tuple[tuple[str, ...], str, dict[str, str]]] = {
    "t5": (
        ("<pad>", "</s>", "<unk>"), "$A </s>", {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "bert": (
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "[CLS] $A [SEP]",
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    ),
}  # fmt: skip
"""Special tokens, what stands around a text, and what the special tokens are for."""
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(kind: str, template: str, vocab_size: int, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind of `KINDS` with a template of `TEMPLATES`; digits stand alone."""
    special = list(MARKS[template])
    tokenizer, trainer = KINDS[kind](vocab_size, special)
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "unigram":
        tokenizer = _settled(tokenizer, texts, len(special) + 1)
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2],
        additional_special_tokens=special[3:],
    )  # fmt: skip
    fast.chat_template = TEMPLATES[template]
    return fast


def _settled(tokenizer: Tokenizer, texts: Sequence[str], special: int) -> Tokenizer:
    """The same Unigram in one order: its trainer leaves the order of ties and unseen characters' scores to chance."""
    state = json.loads(tokenizer.to_str())
    vocab, seen = state["model"]["vocab"], set("".join(texts).replace(" ", "\u2581"))
    learned = [(p, round(score, 6)) for p, score in vocab[special:] if len(p) > 1 or p in seen]
    floor = min(score for _, score in learned) - 0.01
    unseen = sorted({p for p, _ in vocab[special:]} - {p for p, _ in learned})
    ordered = sorted(learned, key=lambda entry: (-entry[1], entry[0])) + [(p, floor) for p in unseen]
    state["model"]["vocab"] = vocab[:special] + ordered
    return Tokenizer.from_str(json.dumps(state))


def _byte_bpe(size: int, special: list[str]) -> tuple[Tokenizer, trainers.Trainer]:
    """BPE over bytes, words cut as GPT-2 cuts them."""
    return _bytes(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], size, special
    )


def _qwen_bpe(size: int, special: list[str]) -> tuple[Tokenizer, trainers.Trainer]:
    """BPE over bytes, words cut as Qwen2 cuts them: `transformers` gives every qwen2 folder that tokenizer."""
    tokenizer, trainer = _bytes(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        size, special,
    )  # fmt: skip
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer, trainer


def _bytes(
    words: list[pre_tokenizers.PreTokenizer], size: int, special: list[str]
) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )


def _metaspace() -> tuple[pre_tokenizers.PreTokenizer, decoders.Decoder]:
    split = [
        pre_tokenizers.Split(Regex(r"\n"), "isolated"),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        pre_tokenizers.Digits(individual_digits=True),
    ]
    return pre_tokenizers.Sequence(split), decoders.Metaspace(prepend_scheme="never")


def _bpe(size: int, special: list[str]) -> tuple[Tokenizer, trainers.Trainer]:
    """BPE over characters with the 256 bytes to fall back on."""
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=special[2]))
    tokenizer.pre_tokenizer, metaspace = _metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace, decoders.Fuse()])
    return tokenizer, trainers.BpeTrainer(
        vocab_size=size, special_tokens=special + fallback, show_progress=False, limit_alphabet=200
    )


def _unigram(size: int, special: list[str]) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = _metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[*special, "<unk>"], unk_token="<unk>", show_progress=False,
        initial_alphabet=[chr(i) for i in range(32, 127)],
    )  # fmt: skip


KINDS = {"byte_bpe": _byte_bpe, "qwen_bpe": _qwen_bpe, "bpe": _bpe, "unigram": _unigram}


def word_tokenizer(kind: WordKind, words: Sequence[str], marks: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are whole lower-case words and single punctuation marks, as a T5 or a BERT reads them.

    Args:
      kind: "t5" puts </s> behind a text (<pad> is 0, </s> 1, <unk> 2); "bert" puts [CLS] before and [SEP] behind it
        ([PAD] is 0).
      words: the vocabulary, behind the special tokens. marks: special tokens, behind the words.
    """
    from transformers import PreTrainedTokenizerFast

    special, template, names = WORD_KINDS[kind]
    pieces = {piece: number for number, piece in enumerate(dict.fromkeys((*special, *words)))}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(piece, pieces[piece]) for piece in special if piece in template]
    )
    inputs = ["input_ids", *(["token_type_ids"] if kind == "bert" else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(marks), model_input_names=inputs, **names
    )


SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """BERT's tokenizer as Chinese BART models have it: WordPiece, Chinese characters taken apart, cased, [CLS] in front
    and [SEP] behind.

    Args:
      words: the vocabulary in the order of the ids, with all of `SPECIALS`.
    """
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=marks
    )
    from transformers import PreTrainedTokenizerFast

    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": mark for name, mark in zip(names, SPECIALS, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
