"""Output vocabularies, aligned rows (golden), the tokenizer files that are written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusion_jax.errors import InputError
from fusion_jax.merge.recipes.recipe import Recipe, Slice, Source, TokenRule, VocabularyPolicy
from fusion_jax.merge.vocabulary.rows import RowPlan, remap, row_plan
from fusion_jax.merge.vocabulary.tokenizer_files import write_tokenizer
from fusion_jax.merge.vocabulary.tokens import Vocabulary, clashes, output_vocabulary, read_vocabulary
from fusion_jax.models.tokenizers import portable
from tests.conftest import GOLDEN

GOLDEN_REMAP: dict[str, Any] = json.loads((GOLDEN / "merge.json").read_text())["embedding_remap"]
BASE_TEXT = ["low lower lowest new newer", "wide wider widest low new"]
OTHER_TEXT = ["sleep sleeper slow slower", "stone stones sleep slow"]


def recipe(models: Sequence[str] = "ab", base: str | None = "base", **policy: Any) -> Recipe:
    sources = tuple(Source(m) for m in models)
    one = Slice(sources, Source(base) if base else None)
    return Recipe("any", (one,), base, vocabulary=VocabularyPolicy(**policy))


def vocabulary(tokens: Sequence[str], *added: str) -> Vocabulary:
    return Vocabulary({t: i for i, t in enumerate([*tokens, *added])}, frozenset(added))


def golden_rule(raw: dict[str, Any], token: str) -> TokenRule:
    model, name = (raw["source"], token) if raw["kind"] == "model" else raw["source"]
    return TokenRule(model, name, raw["force"])


@pytest.mark.parametrize("case", GOLDEN_REMAP["cases"], ids=lambda c: c["id"])
def test_rows_are_mergekits(case: dict[str, Any]) -> None:
    arrays = np.load(GOLDEN / "merge.npz")
    names = list(GOLDEN_REMAP["vocabs"])
    output = vocabulary(GOLDEN_REMAP["out_vocab"])
    rules = {t: golden_rule(raw, t) for t, raw in case["token_config"].items()}
    one = recipe(
        [name for name in names if name != case["base"]], case["base"], tokens=rules,
        pad_to_multiple_of=case["pad_to_multiple_of"],
    )  # fmt: skip
    plan = row_plan(one, {m: vocabulary(GOLDEN_REMAP["vocabs"][m]) for m in names}, output)
    found = remap(plan, {m: jnp.asarray(arrays[f"embed_input/{m}"]) for m in names})
    assert found.keys() == set(names)
    for name, matrix in found.items():
        expected = arrays[f"{case['id']}/{name}"]
        assert matrix.shape == expected.shape == (plan.size, 6) and matrix.dtype == jnp.float32
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-6)


def test_the_golden_rows_are_all_there() -> None:
    assert [c["id"] for c in GOLDEN_REMAP["cases"]] == ["embed0", "embed1", "embed2", "embed3"]


def test_zero_rules_and_tokens_of_nobody_are_zero_rows() -> None:
    rules = {"a": TokenRule(), "b": TokenRule(force=True)}
    plan = row_plan(recipe("xy", None, tokens=rules), {"x": vocabulary("ab"), "y": vocabulary("b")}, vocabulary("abc"))
    found = remap(plan, {"x": jnp.array([[1.0], [2.0]]), "y": jnp.array([[3.0]])})
    assert found["x"].tolist() == [[1.0], [0.0], [0.0]] and found["y"].tolist() == [[0.0], [0.0], [0.0]]


def test_gaps_are_filled_like_padding_and_biases_are_remapped() -> None:
    output = Vocabulary({"a": 0, "b": 2})
    plan = row_plan(recipe("", "x", pad_to_multiple_of=4), {"x": vocabulary("ab")}, output)
    found = remap(plan, {"x": jnp.array([1.0, 3.0, 99.0], jnp.bfloat16)})["x"]  # a row beyond the vocabulary is trimmed
    assert found.tolist() == [1.0, 2.0, 3.0, 2.0] and found.dtype == jnp.bfloat16
    assert plan.filler.tolist() == [False, True, False, True]


def test_a_union_keeps_the_bases_ids_and_puts_added_tokens_last() -> None:
    given = {
        "base": Vocabulary({"x": 0, "y": 1, "<s>": 3}, frozenset({"<s>"})),
        "a": vocabulary("yuw", "<s>", "<a>"),
        "b": vocabulary("vx", "<b>", "w"),
    }
    out = output_vocabulary(recipe(source="union"), given)
    assert out.ids == {"x": 0, "y": 1, "<s>": 3, "u": 4, "v": 5, "<a>": 6, "<b>": 7, "w": 8}
    assert out.added == {"<s>", "<a>", "w", "<b>"}
    assert output_vocabulary(recipe(source="base"), given) == given["base"]
    assert output_vocabulary(recipe(source="model", model="b"), given) == given["b"]
    assert output_vocabulary(recipe(base=None, source="union"), given).ids["y"] == given["a"].ids["y"]


def test_a_recipes_rows() -> None:
    given = {"base": vocabulary("xy"), "a": vocabulary("yu"), "b": Vocabulary({"x": 0, "v": 1}, rows=4)}
    policy = {"source": "union", "tokens": {"u": TokenRule("b", 3)}, "pad_to_multiple_of": 8}
    one = recipe(**policy)
    plan = row_plan(one, given, output_vocabulary(one, given))
    assert plan.own.tolist() == [[-1, 0, 1, *[-1] * 5], [0, -1, -1, 1, *[-1] * 4], [0, 1, *[-1] * 6]]
    assert plan.default[:4].tolist() == [[-1, -1, 0], [-1, -1, 1], [-1, 3, -1], [-1, 1, -1]]
    assert isinstance(plan, RowPlan) and plan.filler.tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"q": TokenRule("a", "q")}, r"'tokenizer\.tokens\.q': is not a token of the output.*union"),
        ({"x": TokenRule("a", "x")}, r"'tokenizer\.tokens\.x\.source': a has no token 'x'.*Name another"),
        ({"x": TokenRule("a", 2)}, r"a has no row 2\. Give a token_id less than 2"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rule: dict[str, TokenRule], problem: str) -> None:
    given = {"base": vocabulary("xy"), "a": vocabulary("yu"), "b": vocabulary("xv")}
    with pytest.raises(InputError, match=problem):
        row_plan(recipe(source="base", tokens=rule), given, given["base"])


def test_ids_that_mean_other_tokens() -> None:
    given = {"base": vocabulary("abcd", "<r0>"), "a": vocabulary("abcd", "<tool>"), "b": vocabulary("abcd")}
    (found,) = clashes(recipe(), given)
    assert found == ("a", 1, 5, (4, "<r0>", "<tool>"))
    with pytest.raises(
        InputError, match=r"b, field 'tokenizer': 4 of 5 ids mean other tokens than in base.*tokenizer_source"
    ):
        clashes(recipe(), given | {"b": vocabulary("dbac<")})


def bpe(texts: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def unigram(texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=30, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    )
    return tokenizer


def folder(path: Path, tokenizer: Tokenizer, *special: str, template: str | None = None) -> Path:
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])
    fast.chat_template = template
    fast.save_pretrained(path)
    (path / "merges.txt").write_text("slow")
    return path


def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        "base": folder(tmp_path / "base", bpe(BASE_TEXT, 270), "</s>", "<pad>", template="{{ 'base' }}"),
        "a": folder(tmp_path / "a", bpe(BASE_TEXT, 270), "</s>", "<|im_end|>", template="{{ 'a' }}"),
        "b": folder(tmp_path / "b", bpe(OTHER_TEXT, 275), "</s>", "<pad>", template="{{ 'a' }}"),
    }


def written(
    tmp_path: Path, one: Recipe, given: dict[str, Path], size: int = 10**6
) -> tuple[Vocabulary, PreTrainedTokenizerFast]:
    out = tmp_path / "out"
    out.mkdir()
    output = output_vocabulary(one, {m: read_vocabulary(path, size) for m, path in given.items()})
    write_tokenizer(one, given, output, out)
    return output, PreTrainedTokenizerFast.from_pretrained(out)


def test_a_bases_tokenizer_is_copied(tmp_path: Path) -> None:
    given = folders(tmp_path)
    _, loaded = written(tmp_path, recipe(source="base"), given)
    names = {p.name for p in given["base"].iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names and "merges.txt" in names
    settings = "tokenizer_config.json"  # rewritten where its class is one that transformers 4 does not know
    unchanged = names - {settings}
    assert all((tmp_path / "out" / n).read_bytes() == (given["base"] / n).read_bytes() for n in unchanged)
    ours, theirs = (json.loads((folder / settings).read_text()) for folder in (tmp_path / "out", given["base"]))
    assert ours == portable(theirs) and ours["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert loaded.chat_template == "{{ 'base' }}"


def test_a_union_tokenizer_has_all_tokens_and_reads_text_as_its_base(tmp_path: Path) -> None:
    given = folders(tmp_path)
    output, loaded = written(tmp_path, recipe(source="union"), given)
    base = PreTrainedTokenizerFast.from_pretrained(given["base"])
    assert loaded.get_vocab() == dict(output.ids) and len(output.ids) > len(base)
    assert not (tmp_path / "out" / "merges.txt").exists()
    for text in [*BASE_TEXT, *OTHER_TEXT, "low</s><pad>"]:
        assert loaded(text).input_ids == base(text).input_ids
    assert loaded("low<|im_end|>").input_ids == [*base("low").input_ids, output.ids["<|im_end|>"]]
    assert loaded.eos_token_id == base.eos_token_id
    only_b = [t for t in read_vocabulary(given["b"], 10**6).ids if t not in base.get_vocab()]
    assert only_b and all(loaded.decode([output.ids[t]]) == t.replace("Ġ", " ") for t in only_b)


def test_tokens_beyond_the_embedding_are_stripped(tmp_path: Path) -> None:
    given = folders(tmp_path)
    output, loaded = written(tmp_path, recipe(source="base"), given, size=265)
    assert loaded.get_vocab() == dict(output.ids) and output.size == 265
    assert loaded.eos_token is None and "</s>" not in output.ids  # no row, so it cannot be asked for
    whole = Tokenizer.from_file(str(given["base"] / "tokenizer.json"))
    assert loaded.decode(loaded("low lower widest").input_ids) == "low lower widest"
    assert max(whole.encode("lower").ids) >= 265 > max(loaded("lower").input_ids)


def test_a_unigram_union_takes_added_tokens_only(tmp_path: Path) -> None:
    given = {
        "base": folder(tmp_path / "base", unigram(BASE_TEXT), "</s>"),
        "a": folder(tmp_path / "a", unigram(BASE_TEXT), "</s>", "<|im_end|>"),
    }
    output, loaded = written(tmp_path, recipe("a", source="union"), given)
    assert loaded.get_vocab() == dict(output.ids) and "<|im_end|>" in output.ids
    given["a"] = folder(tmp_path / "c", unigram(OTHER_TEXT), "</s>")
    output = output_vocabulary(recipe("a", source="union"), {m: read_vocabulary(p, 10**6) for m, p in given.items()})
    with pytest.raises(
        InputError, match=r"base/tokenizer\.json.*a Unigram tokenizer cannot take.*to base or to a model"
    ):
        write_tokenizer(recipe("a", source="union"), given, output, tmp_path)


@pytest.mark.parametrize(("choice", "expected"), [("auto", "{{ 'a' }}"), ("{{ 'mine' }}", "{{ 'mine' }}")])
def test_chat_templates(tmp_path: Path, choice: str, expected: str) -> None:
    given = folders(tmp_path)
    one = recipe(source="refuse")
    _, loaded = written(tmp_path, Recipe(one.method, one.slices, one.base, chat_template=choice), given)
    assert loaded.chat_template == expected


def test_auto_needs_a_template(tmp_path: Path) -> None:
    given = {"a": folder(tmp_path / "a", bpe(BASE_TEXT, 260), "</s>")}
    one = recipe("a", None)
    with pytest.raises(InputError, match=r"'chat_template': is 'auto', but no model has one\. Give the template"):
        written(tmp_path, Recipe(one.method, one.slices, chat_template="auto"), given)


def test_broken_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no tokenizer\.json.*save_pretrained"):
        read_vocabulary(tmp_path, 10)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: is no tokenizer.*Download"):
        read_vocabulary(tmp_path, 10)
