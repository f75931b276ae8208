"""The golden file of the corrector, and its small tokenizers."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusion_jax.zoo.tokenizers import bert_tokenizer
from tests.conftest import GOLDEN


@cache
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "alirector.json").read_text(encoding="utf-8"))


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's Chinese tokenizer with the golden vocabulary."""
    return bert_tokenizer(golden()["toy_tokenizer"]["vocab"])


@cache
def merging() -> PreTrainedTokenizerFast:
    """A character tokenizer of a decoder alone that makes one token of a colon and the character behind it."""
    single = "Input:Output\t\n 我去学校昨天了。花很漂亮请修改下面句子中的语法错误，只输出改正后里有两个用隔开对照者写没"
    words = ["<pad>", "<unk>", "<s>", "</s>", *dict.fromkeys(single), ":我"]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r":我|[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)
