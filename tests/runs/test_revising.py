"""A reviser's tokens: what its labels are in ids, which tokens it learns, and the probability of a label."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import fusion_jax as fj
from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.compute import Compute
from fusion_jax.rewards.revision import KEEP, REVISE, LabelRules, p_keep
from fusion_jax.runs import examining, revising
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.provenance import Ran
from fusion_jax.runs.reading import TOO_LONG, Asked
from fusion_jax.runs.revising import Pair, Reviser, spelling
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.fused_objectives import LABEL, REVISION
from fusion_jax.zoo.tokenizers import TEMPLATES, train_tokenizer
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")

TEXT = TextSettings(tokens=TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing"))
ASKED = ({"role": "user", "content": "Sort c a b"},)
PAIRS = [
    Pair(str(i), ({"role": "user", "content": f"Sort {x}"},), " ".join(sorted(x.split())), x, {})
    for i, x in enumerate(("c a b", "d a", "b a d c", "z y x", "q p", "n m o"))
]


@pytest.fixture(scope="module")
def reviser() -> Reviser:
    return Reviser(small_model(), LabelRules(), "turns", TEXT, Compute(), 4)


@pytest.mark.parametrize("kind, template", [("byte_bpe", "inst"), ("bpe", "headers"), ("qwen_bpe", "chatml")])
def test_labels_are_spelled_as_answers_begin_with_them(kind, template):
    tokenizer = train_tokenizer(kind, template, 340, ["sort a b c user assistant\n"] * 20)
    for rules in (LabelRules(), LabelRules(labels=3, keep_target="copy")):
        found = spelling(tokenizer, TEXT, rules)
        assert tokenizer.decode(list(found.labels[0])).strip() == KEEP
        assert KEEP not in tokenizer.decode(list(found.header)) and len(found.labels) == rules.labels


def test_a_line_s_end_may_be_in_a_label_s_last_token():
    """As in the tokenizers of Llama-3 and Qwen, which have a token "]\\n"."""
    tokenizer = train_tokenizer("qwen_bpe", "chatml", 300, [f"{REVISE}\nsorted"] * 20)
    ids = tokenizer(f"{REVISE}\na", add_special_tokens=False)["input_ids"]
    found = spelling(tokenizer, TEXT, LabelRules())
    assert "]\n" in tokenizer.decode(ids[-2]) and found.labels[1] == tuple(ids[:-1])


def test_labels_that_cannot_be_told_are_refused():
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(("<unk>", "<s>", "</s>", "a", "user", "model"))}, "<unk>"))
    words.pre_tokenizer = Whitespace()
    unknown = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    unknown.chat_template = TEMPLATES["inst"]
    with pytest.raises(InputError, match=r"label \[KEEP\].*cannot write it"):
        spelling(unknown, TEXT, LabelRules())
    tokenizer = train_tokenizer("byte_bpe", "inst", 340, ["sort"] * 20)
    tokenizer.add_tokens([f"{REVISE}\na"])
    with pytest.raises(InputError, match=r"label \[REVISE\].*merges it with what stands beside it"):
        spelling(tokenizer, TEXT, LabelRules())


def test_which_tokens_of_a_draft_are_learnt(reviser):
    """Of a kept draft the label with the turn's end, of a revised one label and revision; never prompt nor header."""
    records = revising.label_records(PAIRS, [{"d": float(i)} for i in range(6)], LabelRules(), 0, Counter())
    rows = revising.label_rows(reviser, records)
    examples, _ = make_examples(rows, reviser.tokenizer, TEXT)
    data = revising.marked(reviser, records, Data(examples), Counter())
    assert {r["kind"] for r in records} == {"high", "low"}
    spelled = reviser.spelled
    for example, record in zip(data.examples, records):
        row, groups = np.asarray(example.rows[0]), example.groups
        at = example.starts[0] + len(spelled.header)
        assert not groups[:at].any() and (groups[at:] > 0).all()
        label = reviser.tokenizer.decode(row[groups == LABEL], skip_special_tokens=True).strip()
        revision = reviser.tokenizer.decode(row[groups == REVISION], skip_special_tokens=True).strip()
        assert (label, revision) == (record["label"], record["target"] or "")
        assert (groups[-1] == LABEL) == (record["label"] == KEEP)
    copied = revising.label_records(PAIRS, [{"d": 1.0}] * 6, LabelRules(keep_target="copy"), 0, Counter())
    assert all(r["target"] == r["draft"] for r in copied if r["kind"] == "high")


def test_p_keep_is_the_product_of_steps_whatever_stands_in_the_batch(reviser):
    asked = [Asked(p.messages, p.rejected) for p in PAIRS]
    scores = revising.decide(reviser, asked)
    np.testing.assert_allclose(scores[2:3], revising.decide(reviser, asked[2:3]), rtol=1e-5)
    prefix = revising.prefixes(reviser, asked)[2]
    for number, ids in enumerate(reviser.spelled.labels):
        logits = np.asarray(fj.logits(reviser.model, np.asarray([[*prefix, *ids]])), np.float64)[0]
        steps = logits[len(prefix) - 1 : -1]
        steps -= np.log(np.exp(steps - steps.max(-1, keepdims=True)).sum(-1, keepdims=True)) + steps.max(
            -1, keepdims=True
        )
        np.testing.assert_allclose(scores[2, number], steps[range(len(ids)), list(ids)].sum(), rtol=1e-4)
    assert ((p_keep(scores) > 0) & (p_keep(scores) < 1)).all()


def test_difficulty_by_hand_and_by_chance(reviser):
    effort = revising.difficulty(reviser, PAIRS, "effort", 0)
    gain = revising.difficulty(reviser, PAIRS, "gain", 0)
    for one, other in zip(effort, gain):
        assert one["d"] == pytest.approx(one["nll_rev"] / one["n_rev"])
        assert other["d"] == pytest.approx(one["d"] - other["nll_prior"] / other["n_prior"])
    rows = revising.revision_rows(reviser, PAIRS)
    end = len(reviser.tokenizer(rows[0].responses[0], add_special_tokens=False)["input_ids"])
    assert effort[0]["n_rev"] >= end  # the response's own tokens and the end of its turn
    edits = revising.difficulty(reviser, [PAIRS[0]._replace(rejected=PAIRS[0].chosen), PAIRS[3]], "edits", 0)
    assert edits[0]["d"] == 0 < edits[1]["d"]
    assert revising.difficulty(reviser, PAIRS, "random", 1) != revising.difficulty(reviser, PAIRS, "random", 2)


def test_revisions_come_with_their_faults(reviser):
    asked = [Asked(p.messages, p.rejected) for p in PAIRS[:2]]
    how = SampleSettings(temperature=0.7, num_samples=1, max_new_tokens=3, batch_size=2)
    scores = revising.decide(reviser, asked)
    found = revising.revise(reviser, asked, scores, how, 0)
    assert len(found) == 2 and all(one.why for one in found)  # random weights do not end within 3 tokens
    plain = dataclasses.replace(reviser, rules=None)
    assert len(revising.revise(plain, asked, None, how, 0)) == 2


def test_a_long_conversation_is_cut_from_the_left_and_neither_draft_nor_answer(reviser):
    """Whatever the wording; a draft that does not fit alone is dropped, and counted."""
    said = [("user", "first " * 20), ("assistant", "second " * 20), ("user", "x y " * 40 + "Sort c a b")]
    talk = tuple({"role": role, "content": text} for role, text in said)
    draft, good = "b c a " * 3, "a b c " * 3
    many = "b a " * 200
    pairs = [Pair("long", talk, good, draft, {}), Pair("never", ASKED, "a b", many, {}), PAIRS[0]]
    for wording, length in (("message", 360), ("turns", 128)):
        text = dataclasses.replace(TEXT, tokens=dataclasses.replace(TEXT.tokens, max_length=length))
        narrow, counts = dataclasses.replace(reviser, wording=wording, text=text), Counter[str]()
        found = revising.fitting_pairs(narrow, pairs, counts)
        assert [p.name for p in found] == ["long", "0"] and counts[TOO_LONG] == 1 and found[1] == PAIRS[0]
        assert [m["role"] for m in found[0].messages] == ["user"]
        assert found[0].messages[0]["content"].endswith("Sort c a b")
        examples, cut = make_examples(revising.revision_rows(narrow, found), narrow.tokenizer, narrow.text)
        assert len(examples) == 2 and not cut["truncated"] and length - 24 < len(examples[0].rows[0]) <= length
        told = narrow.tokenizer.decode(examples[0].rows[0])
        assert draft.strip() in told and good.strip() in told
        long, never = revising.prefixes(narrow, [Asked(talk, draft), Asked(ASKED, many)])
        assert never is None and draft.strip() in narrow.tokenizer.decode(long)


def test_what_cannot_be_read_stops_no_run(reviser, tmp_path):
    """A draft that the template changes is unknown in the records, among others and alone."""
    tokenizer = copy.deepcopy(reviser.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("| trim", "| replace('~', '') | trim")
    strict = dataclasses.replace(reviser, model=dataclasses.replace(reviser.model, tokenizer=tokenizer))
    how = SampleSettings(num_samples=1, max_new_tokens=3, batch_size=2)
    desk = Desk(RunFolder(tmp_path, Console(quiet=True)), "", Ran("", SimpleNamespace(seed=0), {}))
    pairs = [PAIRS[0], PAIRS[1]._replace(rejected="a~b")]

    def judge(records):
        return [None if "~" in r["response"] else 1.0 for r in records]

    desk.records("both.jsonl", lambda: examining.examined(strict, pairs, how, 0, judge))
    both = read_jsonl(tmp_path / "both.jsonl")
    assert [r["low"]["p_keep"] is None for r in both] == [False, True] and both[1]["low"]["why"] == "unreadable"
    found = examining.examination(both, 0.5)
    assert (found.pairs, found.judged) == (1, 1) and examining.kinds_table(both, 0.5) == ""
    alone = desk.records("alone.jsonl", lambda: examining.examined(strict, pairs[1:], how, 0, judge))
    assert alone[0]["low"]["p_keep"] is None and examining.examination(alone, 0.5).pairs == 0
    assert revising.difficulty(strict, pairs[1:], "effort", 0) == [{"pair_id": "1", "d": None}]


def test_a_label_that_is_spelled_otherwise_is_dropped_and_counted(reviser):
    records = revising.label_records(PAIRS, [{"d": float(i)} for i in range(6)], LabelRules(), 0, counts := Counter())
    assert counts[f"draft with {KEEP}"] + counts[f"draft with {REVISE}"] == len(records)
    examples, _ = make_examples(revising.label_rows(reviser, records), reviser.tokenizer, TEXT)
    wrong = dataclasses.replace(examples[0], rows=(examples[0].rows[0][: examples[0].starts[0]] + (7,) * 30,))
    counts = Counter()
    data = revising.marked(reviser, records, Data([wrong, *examples[1:]]), counts)
    assert len(data) == len(examples) - 1 and sum(counts.values()) == 1
    with pytest.raises(InputError, match="other tokens than alone"):
        revising.marked(reviser, records, Data([wrong]), counts)
