"""The zoo's tokenizers, trained on its own text: four vocabularies of three kinds, each with its own chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
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


def train_tokenizer(kind: str, template: str, vocab_size: int, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind ("byte_bpe", "bpe", "unigram") with a template of `TEMPLATES`; digits stand alone."""
    special = list(MARKS[template])
    tokenizer, trainer = {"byte_bpe": _byte_bpe, "bpe": _bpe, "unigram": _unigram}[kind](vocab_size, special)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2],
        additional_special_tokens=special[3:],
    )  # fmt: skip
    fast.chat_template = TEMPLATES[template]
    return fast


def _byte_bpe(size: int, special: list[str]) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
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
