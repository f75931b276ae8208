"""A single value in the place of a list is refused with its cure, not taken apart into characters, keys or rows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import fusion_jax as fj
from fusion_jax.data.asked import parse_prompts, parse_responses
from fusion_jax.data.chat import generation_prompt
from fusion_jax.data.documents import text_documents
from fusion_jax.data.loaders import write_array_record
from fusion_jax.data.windows import split_windows
from fusion_jax.evals.accuracy import evaluate
from fusion_jax.evals.perplexity import surprise
from fusion_jax.jsonl import content_hash, write_jsonl
from fusion_jax.losses import Pair, Quad, Target
from fusion_jax.rewards.select import by_prompt, score_with
from fusion_jax.sampling.generate import SampleSettings, generate_ids
from fusion_jax.sampling.responses import sample_responses
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")

RECORD = {"prompt": "a", "answer": "b"}
TWO = np.ones(2, np.float32)
PAIR, QUAD = Pair(TWO, TWO), Quad(TWO, TWO, TWO)
TARGET = Target(np.zeros((2, 3, 4), np.int32), np.zeros((2, 3, 4), np.float32))


@cache
def model():
    return small_model()


def refused(call, *told):
    with pytest.raises(fj.InputError) as caught:
        call()
    assert caught.value.cure and len(str(caught.value)) < 400
    for part in told:
        assert part in str(caught.value)


def test_generate_refuses_one_text_and_says_how_to_write_it():
    refused(lambda: fj.generate(model(), "one string", max_new_tokens=1), "'prompts'", "'one string'", "['one string']")
    refused(lambda: fj.generate(model(), "x" * 10**6, max_new_tokens=1), "'prompts'", "['...']")


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("prompts", [None, 3, b"ab", {"prompt": "a"}, [1], [["a"]], [{"role": "user"}], [b"a"]])
def test_generate_takes_texts_only(prompts, chat):
    refused(lambda: fj.generate(model(), prompts, max_new_tokens=1, chat=chat), "'prompts'")


def test_other_lists_of_texts_are_taken():
    wanted = fj.generate(model(), ["a", "b"], max_new_tokens=1)
    assert len(wanted) == 2 and fj.generate(model(), [], max_new_tokens=1) == []
    for same in (("a", "b"), np.array(["a", "b"]), iter(["a", "b"])):
        assert fj.generate(model(), same, max_new_tokens=1) == wanted


@pytest.mark.parametrize("call", [
    lambda: fj.generate(model(), ["a", "b"], row_ids="ab", max_new_tokens=1),
    lambda: generate_ids(model().params, model().config, "ab", max_new_tokens=1),
    lambda: generate_ids(model().params, model().config, ["ab"], max_new_tokens=1),
    lambda: generate_ids(model().params, model().config, [1, 2], max_new_tokens=1),
    lambda: sample_responses(model(), "m", "ab", SampleSettings(), seed=0),
    lambda: sample_responses(model(), "m", RECORD, SampleSettings(), seed=0),
    lambda: evaluate("m", model(), "ab", max_new_tokens=1),
    lambda: evaluate("m", model(), RECORD, max_new_tokens=1),
    lambda: surprise(model(), "ab", max_length=8, compute=None),
    lambda: fj.logits(model(), "ab"),
    lambda: fj.logits(model(), [1, 2]),
    lambda: fj.logits(model(), [[1.0, 2.0]]),
])  # fmt: skip
def test_models_take_lists(call):
    refused(call)


@pytest.mark.parametrize("call", [
    lambda: text_documents("ab"),
    lambda: split_windows("ab", [model().tokenizer], 8),
    lambda: generation_prompt(model().tokenizer, "ab"),
    lambda: generation_prompt(model().tokenizer, ["ab"]),
    lambda: generation_prompt(model().tokenizer, {"role": "user", "content": "a"}),
    lambda: content_hash("ab"),
    lambda: content_hash(RECORD),
    lambda: parse_prompts("ab"),
    lambda: parse_prompts(RECORD),
    lambda: parse_responses(RECORD),
    lambda: by_prompt(RECORD),
    lambda: score_with("ab", lambda response, answer: 1.0),
])  # fmt: skip
def test_data_and_rewards_take_lists(call):
    refused(call)


@pytest.mark.parametrize("write", [write_jsonl, write_array_record])
@pytest.mark.parametrize("records", ["ab", RECORD, None])
def test_nothing_is_written_of_a_single_record(tmp_path, write, records):
    refused(lambda: write(tmp_path / "out", records), "'records'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [
    lambda: fj.merge.merge_trees("linear", model().params, weight=1.0),
    lambda: fj.merge.merge_trees("linear", np.ones((2, 3), np.float32), weight=1.0),
    lambda: fj.merge.merge_trees("linear", "ab", weight=1.0),
    lambda: fj.merge.merge_trees("linear", PAIR, weight=1.0),
    lambda: fj.merge.merge_trees("linear", [model(), model()], weight=1.0),
    lambda: fj.merge.methods.linear([TWO, TWO], None, weight=1.0),
    lambda: fj.merge.methods.linear("ab", None, weight=1.0),
    lambda: fj.merge.methods.linear(np.ones((2, 3), np.float32), None, weight="12"),
    lambda: fj.merge.methods.sce([TWO, TWO], TWO),
    lambda: fj.merge.prepare(["a", "b"]),
    lambda: fj.align.TokenizerView("ab", "ab", " "),
    lambda: fj.align.count_pairs("ab", None, None),
    lambda: fj.align.align_tokens("ab", ["ab"]),
])  # fmt: skip
def test_merges_and_alignments_take_lists(call):
    refused(call)


@pytest.mark.parametrize("call", [
    lambda: fj.losses.dpo(PAIR, PAIR, beta=0.1, lengths=TWO),  # two rows: the lengths would be taken for chosen and rejected
    lambda: fj.losses.dpo(PAIR, TWO, beta=0.1),
    lambda: fj.losses.dpo(np.stack([TWO, TWO]), PAIR, beta=0.1),
    lambda: fj.losses.simpo(PAIR, beta=2.0, gamma=1.0, lengths=TWO),
    lambda: fj.losses.wrpo(QUAD, np.ones((3, 2)), alpha=0.1, beta=0.1),
    lambda: fj.losses.fused_targets(TARGET, np.ones((2, 2))),
    lambda: fj.losses.fused_targets(TARGET.probs, np.ones((2, 2))),
])  # fmt: skip
def test_losses_do_not_take_an_array_apart(call):
    refused(call)
