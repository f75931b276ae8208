"""Damaged input of every kind: refused in one line or read; never a traceback, a hang or memory without bound.

4 s for each kind, 1 s in daily work; FUSION_JAX_FUZZ_SECONDS=60 (or any other number) searches longer. A failure names the
seed of its case.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fusion_jax.correction.operations import load_fcgec
from fusion_jax.correction.pairs import load_para, load_sources, load_triples
from fusion_jax.data.asked import parse_prompts, parse_responses
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import parse_rows
from fusion_jax.merge import METHODS
from fusion_jax.merge.recipes.reading import read_recipe
from fusion_jax.models.folder import check_folder, load, save
from fusion_jax.models.safetensors_io import read_header
from tests.fuzz.mutate import damaged, hold, text_of, torn
from tests.small import small_model


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [said("system", "Be brief."), said("user", "2+2?"), said("assistant", "4"), said("user", "3+3?")]
RECORDS: dict[str, list[dict[str, Any]]] = {
    "sft": [
        {"prompt": "a b", "response": "b a", "prompt_id": "p1"},
        {"messages": [*TALK, said("assistant", "6")]},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
        {"instruction": "Reverse.", "input": "a b", "output": "b a"},
    ],
    "pair": [
        {"prompt": "a b", "chosen": "b a", "rejected": "a b", "prompt_id": 7},
        {"prompt": TALK, "chosen": [said("assistant", "6")], "rejected": [said("assistant", "7")]},
        {"chosen": [*TALK, said("assistant", "6")], "rejected": [*TALK, said("assistant", "7")]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go away"},
        {"system": "s", "question": "q", "chosen": "c", "rejected": "r"},
    ],
    "quad": [
        {"prompt_id": "p", "prompt": said("user", "q"), "chosen": [said("assistant", "s"), said("assistant", "t")],
         "rejected": [said("assistant", "u")]},
        {"prompt_id": "p", "prompt": TALK, "chosen": [None, said("assistant", "t")], "rejected": [said("assistant", "u")]},
    ],
    "prompts": [{"prompt": "a b", "answer": "b a", "prompt_id": "p1", "skill": "s"}, {"prompt": [said("user", "q")]}],
    "responses": [
        {"prompt": "a", "prompt_id": "p1", "source_model": "m", "response": "b", "reward": 0.5, "sample": 0},
        {"prompt": "c", "source_model": "n", "response": "d", "answer": "e"},
    ],
}  # fmt: skip
WORDS = (
    "prompt", "response", "chosen", "rejected", "messages", "conversations", "system", "history", "tool_calls", "role",
    "content", "weight", "reward", "prompt_id", "answer", "sample", "extra",
)  # fmt: skip
PARSERS = {"prompts": parse_prompts, "responses": parse_responses}


def damaged_records(draw: random.Random, kind: str, file: Path) -> list[Any]:
    records = [draw.choice(RECORDS[kind]) for _ in range(3)]
    records[1] = damaged(records[1], draw, WORDS)
    raw = b"\n".join(map(text_of, records))
    file.write_bytes(torn(raw, draw) if draw.random() < 0.2 else raw)
    return load_records(str(file))


def test_records(tmp_path: Path) -> None:
    def attempt(draw: random.Random) -> None:
        kind = draw.choice(list(RECORDS))
        records = damaged_records(draw, kind, tmp_path / "r.jsonl")
        if kind in PARSERS:
            PARSERS[kind](records, file="r.jsonl")
        else:
            rows, _ = parse_rows(records, kind, file="r.jsonl")
            assert all(isinstance(r, str | None) for row in rows for r in row.responses)

    hold(attempt)


SENTENCES = [{"source": "他去了学校昨天。", "target": "他昨天去了学校。", "pred": "他去了学校。"} for _ in range(3)]
OPERATIONS = {
    "a": {"sentence": "abcde", "error_flag": 0, "operation": "[]"},
    "b": {"sentence": "abcde", "error_flag": 1, "operation": [
        {"Switch": [1, 0, 2, 3, 4], "Delete": [0], "Modify": [{"pos": 3, "tag": "MOD_1+DEL_1", "label": ["x", "y"]}]},
        {"Insert": [{"pos": -1, "tag": "INS_1", "label": "z"}]},
    ]},
}  # fmt: skip
SENTENCE_WORDS = ("source", "target", "pred", "sentence", "error_flag", "operation", "Switch", "Delete", "Insert", "Modify", "pos", "tag", "label")  # fmt: skip


def test_sentences_and_their_corrections(tmp_path: Path) -> None:
    file = tmp_path / "s.json"

    def attempt(draw: random.Random) -> None:
        if draw.random() < 0.2:
            lines = "".join(f"{i}\t{one['source']}\t{one['target']}\n" for i, one in enumerate(SENTENCES))
            file.write_bytes(torn(lines.encode(), draw))
            load_para(file)
            load_sources(file)
            return
        triples = draw.random() < 0.4
        raw = text_of(damaged(SENTENCES if triples else OPERATIONS, draw, SENTENCE_WORDS))
        file.write_bytes(torn(raw, draw) if draw.random() < 0.3 else raw)
        if triples:
            load_triples(file)
        else:
            sentences, _ = load_fcgec(file)
            assert all(isinstance(r, str) and r for s in sentences for r in s.references)

    hold(attempt)


TEMPLATES = (
    None,
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\\n' }}{% endfor %}",
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
)
PIECES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**10 }}", "{{ messages }}", "{{ m.content[:3] }}", "{{ 1/0 }}",
    "{% set c = m.content.split('x')[-1] %}", "{{ ().__class__ }}", "{% for m in messages %}", "{% endfor %}", "{{", "\x00",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ undefined.x.y }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
)  # fmt: skip


def test_chats(tmp_path: Path) -> None:
    tokenizer = small_model().tokenizer
    own = tokenizer.chat_template

    def attempt(draw: random.Random) -> None:
        kind = draw.choice(("sft", "pair", "quad"))
        template = draw.choice(TEMPLATES)
        if template is not None and draw.random() < 0.4:
            at = draw.randrange(len(template))
            template = template[:at] + draw.choice(PIECES) + template[at:]
        tokenizer.chat_template = template or own
        records = [draw.choice(RECORDS[kind]) for _ in range(2)]
        if draw.random() < 0.6:
            records = damaged_records(draw, kind, tmp_path / "r.jsonl")
        rows, _ = parse_rows(records, kind)
        make_examples(rows, tokenizer, TextSettings())

    hold(attempt)


RECIPES = [
    {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": [0, 1]}}], "dtype": "bfloat16"},
    {"merge_method": "ties", "base_model": "base", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 1}], "density": 0.5}, "tokenizer_source": "union"},
    {"merge_method": "slerp", "base_model": "a", "slices": [{"sources": [{"model": "a", "layer_range": [0, 4]}, {"model": "b", "layer_range": [0, 4]}]}], "parameters": {"t": 0.5}},
    {"merge_method": "varm", "base_model": "base", "models": [{"model": "a"}], "parameters": {"granularity": "avg_layer"}, "tokenizer": {"source": "base", "tokens": {"<x>": {"source": {"kind": "zero"}, "force": True}}, "pad_to_multiple_of": 8}, "seed": 3, "chat_template": "auto"},
]  # fmt: skip
RECIPE_WORDS = ("merge_method", "models", "slices", "sources", "parameters", "weight", "value", "filter", "model", "tokenizer", "modules", "experts", "base_model")  # fmt: skip


def test_recipes(tmp_path: Path) -> None:
    file = tmp_path / "r.yml"

    def attempt(draw: random.Random) -> None:
        raw = damaged(draw.choice(RECIPES), draw, RECIPE_WORDS)
        if draw.random() < 0.3:
            read_recipe(raw, METHODS)
            return
        try:
            text = text_of(raw) if draw.random() < 0.3 else yaml.safe_dump(raw).encode(errors="replace")
        except RecursionError:  # of the dumper
            text = text_of(raw)
        file.write_bytes(torn(text, draw) if draw.random() < 0.5 else text)
        read_recipe(file, METHODS)

    hold(attempt)


FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
CONFIG_WORDS = ("hidden_size", "num_hidden_layers", "rope_parameters", "rope_scaling", "eos_token_id", "num_labels", "id2label", "architectures", "quantization_config", "auto_map", "chat_template", "tokenizer_class", "sliding_window", "layer_types", "tie_word_embeddings")  # fmt: skip


def test_config_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(small_model(), folder)
    originals = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "bos_token_id": 0, "temperature": 0.7}')
    originals["generation_config.json"] = (folder / "generation_config.json").read_bytes()

    def attempt(draw: random.Random) -> None:
        name = draw.choice(("config.json", "config.json", *originals))
        raw = text_of(damaged(json.loads(originals[name]), draw, CONFIG_WORDS))
        (folder / name).write_bytes(torn(raw, draw) if draw.random() < 0.15 else raw)
        try:
            check_folder(folder)
            load(str(folder))
        finally:
            (folder / name).write_bytes(originals[name])

    hold(attempt)


def test_safetensors_headers(tmp_path: Path) -> None:
    """The library that defines the format is the judge: what it refuses is refused, what we read it reads equally."""
    file = tmp_path / "model.safetensors"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(4, np.float16),
        "c": np.zeros((0, 2), np.float32),
    }
    save_file(arrays, file, metadata={"format": "pt"})
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    words = ("a", "b", "d", "dtype", "shape", "data_offsets", "__metadata__", "F32", "I64")

    def attempt(draw: random.Random) -> None:
        changed = damaged(header, draw, words)
        if draw.random() < 0.6:
            name = draw.choice([k for k in header if k != "__metadata__"])
            if isinstance(changed.get(name), dict):
                field = draw.choice(("shape", "data_offsets", "dtype"))
                changed[name][field] = draw.choice(
                    {"shape": ([6], [2, 2], [2**40, 2**40], [-2, -3], [2, 3, 0], []), "dtype": ("F16", "BF16", "I64", "BOOL", "F8_E4M3", "f32", "U8"),
                     "data_offsets": ([0, 24], [4, 28], [24, 32], [0, 2**63], [28, 4], [0, 0], [0, 31])}[field]
                )  # fmt: skip
        text = json.dumps(changed).encode()
        if draw.random() < 0.1:
            text = text[:-1] + b', "a": ' + json.dumps(header["a"]).encode() + b"}"
        raw = struct.pack("<Q", len(text)) + text + body + draw.choice((b"", b"", b"", b"\x00" * 4))
        file.write_bytes(torn(raw, draw) if draw.random() < 0.3 else raw)
        try:
            with safe_open(file, "np") as theirs:
                known = set(theirs.keys())
        except SafetensorError:
            known = None
        ours = read_header(file)
        assert known is not None, "the library refuses this file"
        assert set(ours) == known
        with safe_open(file, "np") as theirs:
            for name, entry in ours.items():
                if entry.dtype in (np.float32, np.float16):
                    np.testing.assert_array_equal(entry.read(), theirs.get_tensor(name))

    hold(attempt)
