"""The backend of lm-eval: its requests' numbers beside PyTorch's and, where the package is installed, its `hf` backend's."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from experiments import evaluate
from fusion_jax.errors import InputError
from fusion_jax.evals.harness.reading import Pair, Reader, chat_text, fitted, windows, with_template
from fusion_jax.evals.harness.running import HarnessSettings, results_of, rows_of, sample_records
from fusion_jax.evals.harness.scoring import Computing, loglikelihoods, rolling
from fusion_jax.evals.harness.writing import answers, wanted
from fusion_jax.evals.harness.zoo_tasks import known_tasks, with_choices, zoo_tasks
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.folder import Model, save
from fusion_jax.sampling.beam_search import BeamSearch
from fusion_jax.sampling.samplers import Sampler
from tests.programs import finished
from tests.small import attempt, fails, small_model, virtual_devices

POSITIONS = 64
ASKED = [
    ("What is 12 + 30?", " 42"), ("What is 12 + 30?", " 41 or so"), ("Sort d a c: ", "a c d"), ("", "What is"),
    ("It", " is the sum of 3 and 4"), ("What is 12 + 30?", " 42"), ("Sort d a c: ", "d"),
    ("one two " * 30, "three"), ("one two " * 30, "four or five"), ("Reverse a b c\n\n", "c b a"),
]  # fmt: skip
TEXTS = ["It", "Write each letter twice: a b c d", " ".join(str(n * n) for n in range(80)), ""]
HOW = Computing(batch_size=4)


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(initializer_range=0.3, max_position_embeddings=POSITIONS)


@pytest.fixture(scope="module")
def reader(model) -> Reader:
    return Reader(model.tokenizer)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("harness") / "model"
    save(model, path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def by_pytorch(theirs, pair: Pair) -> tuple[float, bool]:
    """As lm-eval's `hf` backend: the end of both that fits, without the last token, in one forward pass."""
    whole = [*pair.context, *pair.continuation][-POSITIONS - 1 :]
    with torch.no_grad():
        out = theirs(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)[-len(pair.continuation) :]
    ids = torch.tensor(pair.continuation)
    return float(out.gather(1, ids[:, None]).sum()), bool((out.argmax(-1) == ids).all())


def test_pytorch_gives_the_same_scores(model, reader, theirs):
    """Shared and lone contexts, equal requests, contexts that are cut, and a continuation that the model writes itself."""
    pairs = reader.pairs(ASKED)
    context = pairs[0].context
    with torch.no_grad():
        best = tuple(
            theirs.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, len(context) :].tolist()
        )
    pairs += [Pair(context, best), Pair((5, 6, 7), (8,))]
    seen: list[int] = []
    found = loglikelihoods(model, pairs, HOW, seen.append)
    for pair, (logprob, greedy) in zip(pairs, found, strict=True):
        expected = by_pytorch(theirs, pair)
        assert logprob == pytest.approx(expected[0], abs=1e-4) and greedy == expected[1]
    assert found[-2][1] and not found[0][1] and found[0] == found[5]
    assert seen == list(range(1, len(set(pairs)) + 1))


def test_pytorch_gives_the_same_likelihoods_of_texts(model, reader, theirs):
    texts = [reader.windows(text, POSITIONS) for text in TEXTS]
    assert len(texts[2]) > 2 and texts[3] == []
    found = rolling(model, texts, HOW)
    for own, value in zip(texts, found, strict=True):
        assert value == pytest.approx(sum(by_pytorch(theirs, pair)[0] for pair in own), abs=1e-3)
        assert all(len(pair.context) + len(pair.continuation) <= POSITIONS + 1 for pair in own)


def test_pytorch_gives_the_same_answers(model, reader, theirs):
    given = [(text, {"until": ["\n", "e"], "max_gen_toks": 20}) for text, _ in ASKED[:4]]
    given += [("one two " * 30, {"until": "zz", "max_new_tokens": 24, "do_sample": False}), ("It", {"max_tokens": 5})]
    found = answers(model, reader, given, HOW)
    for (context, how), text in zip(given, found, strict=True):
        limit = next(value for name, value in how.items() if name.startswith("max"))
        prompt = reader.prompt(context, POSITIONS - limit)
        with torch.no_grad():
            out = theirs.generate(torch.tensor([prompt]), max_new_tokens=limit, do_sample=False)[0, len(prompt) :]
        expected = model.tokenizer.decode(out, skip_special_tokens=True)
        for end in [how["until"]] if isinstance(how.get("until"), str) else how.get("until", []):
            expected = expected.split(end)[0]
        assert text == expected
    assert len(found[4]) > 10 and any(len(text) < 20 for text in found[:4])


def harness_pair(tokenizer, context: str, continuation: str, **special: bool) -> Pair:
    """As lm-eval 0.4's `_encode_pair` writes it."""
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole, alone = tokenizer.encode(context + continuation, **special), tokenizer.encode(context, **special)
    return Pair(tuple(alone), tuple(whole[len(alone) :]))


class TestRequestsAsTokens:
    def test_pairs(self, model, reader):
        tokenizer = model.tokenizer
        found = reader.pairs(ASKED)
        for (context, continuation), pair in zip(ASKED, found, strict=True):
            if context:
                assert pair == harness_pair(tokenizer, context, continuation)
        assert found[3] == Pair(
            (tokenizer.bos_token_id,), tuple(tokenizer("What is", add_special_tokens=False)["input_ids"])
        )
        assert tokenizer.decode(found[9].continuation) == "\n\nc b a"
        bos = tokenizer.bos_token
        (begun,) = reader.pairs([("", f"{bos}a b")])
        assert begun == Pair((tokenizer.bos_token_id,), tuple(tokenizer("a b", add_special_tokens=False)["input_ids"]))

    def test_special_tokens(self, model):
        """A tokenizer that sets BOS does so once, not behind a template that wrote it; `add_bos` overrules it."""
        tokenizer = model.tokenizer

        class WithBos:
            def __getattr__(self, name):
                return getattr(tokenizer, name)

            def __call__(self, text, add_special_tokens=True):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                return {"input_ids": [tokenizer.bos_token_id, *ids] if add_special_tokens else ids}

        plain = tuple(tokenizer("a b c", add_special_tokens=False)["input_ids"])
        first = (tokenizer.bos_token_id,)
        assert Reader(WithBos()).ids("a b c") == first + plain
        assert Reader(WithBos()).ids(f"{tokenizer.bos_token}a b c") == first + plain
        assert Reader(WithBos(), add_bos=False).ids("a b c") == plain
        assert Reader(WithBos()).pairs([("a b", " c")])[0].context[:1] == first
        assert Reader(WithBos(), encoder=True).pairs([("a", " b c")]) == [
            Pair(first + tuple(tokenizer("a", add_special_tokens=False)["input_ids"]),
                 tuple(tokenizer(" b c", add_special_tokens=False)["input_ids"]))
        ]  # fmt: skip

    def test_windows_of_the_harness(self):
        """The example of lm-eval's interface: each token once, the last window with a whole context."""
        found = list(windows(range(10), -1, 4))
        assert found == [Pair((-1,), (0, 1, 2, 3)), Pair((3,), (4, 5, 6, 7)), Pair((5, 6, 7), (8, 9))]
        assert list(windows((), -1, 4)) == [] and list(windows((7,), -1, 4)) == [Pair((-1,), (7,))]

    def test_contexts_lose_their_beginning(self):
        assert fitted(Pair(tuple(range(9)), (9, 10)), 6) == Pair((4, 5, 6, 7, 8), (9, 10))
        assert fitted(Pair(tuple(range(9)), (9, 10)), 6, encoder=True) == Pair((3, 4, 5, 6, 7, 8), (9, 10))
        with pytest.raises(InputError, match="field 'continuation': has 7 tokens, more than the model's 6 positions"):
            fitted(Pair((1,), tuple(range(7))), 6)

    def test_chats(self, reader):
        told = [{"role": "user", "content": "hi"}]
        apply = reader.tokenizer.apply_chat_template
        assert chat_text(reader, told, header=True) == apply(told, tokenize=False, add_generation_prompt=True)
        told += [{"role": "assistant", "content": "The answer is "}]
        assert chat_text(reader, told, header=False) == apply(told, tokenize=False, continue_final_message=True)
        assert chat_text(reader, told, header=False).endswith("The answer is")

    def test_a_template_that_refuses_system_messages(self, model, reader, caplog):
        import copy

        tokenizer = copy.copy(model.tokenizer)
        refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        tokenizer.chat_template = {
            "default": refusal + model.tokenizer.chat_template,
            "bare": "{{ messages[0]['content'] }}",
        }
        told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        with caplog.at_level(logging.WARNING):
            found = chat_text(Reader(tokenizer), told, header=True)
        assert found == chat_text(reader, told[1:], header=True) and "system message" in caplog.text
        assert chat_text(with_template(Reader(tokenizer), "bare"), told[1:], header=True) == "hi"
        with pytest.raises(InputError, match=r"no chat template 'long'\. Choose one of bare, default"):
            with_template(Reader(tokenizer), "long")

    def test_what_cannot_be_scored(self, model, reader):
        with pytest.raises(InputError, match="record 2, field 'continuation': holds no token"):
            reader.pairs([("a", " b"), ("a", "")])
        with pytest.raises(InputError, match="record 1, field 'context': holds a token id outside"):
            loglikelihoods(model, [Pair((10**6,), (1,))], HOW)
        nameless = SimpleNamespace(bos_token_id=None, eos_token_id=None)
        with pytest.raises(InputError, match="field 'prefix_token_id': the tokenizer has neither"):
            Reader(nameless).first  # noqa: B018
        broken = dataclasses.replace(
            model, params={**model.params, "final_norm": {"scale": np.full(32, np.nan, np.float32)}}
        )
        with pytest.raises(InputError, match="record 1: the model's logits are not finite"):
            loglikelihoods(broken, [Pair((5, 6), (7,))], HOW)


class TestArgumentsOfAnswers:
    def test_what_they_mean(self, model):
        assert wanted({}, model, POSITIONS)[:3] == (32, (), Sampler())
        found = wanted({"until": ["\n", ""], "max_gen_toks": 9, "max_tokens": 3, "use_cache": True}, model, POSITIONS)
        assert found == (9, ("\n",), Sampler(), None)
        sampled = wanted({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5}, model, POSITIONS)
        assert sampled.sampler == Sampler(0.7, 0.9, 5)
        assert wanted({"do_sample": False, "temperature": 0.7}, model, POSITIONS).sampler.temperature == 0
        own = dataclasses.replace(model, generation={"repetition_penalty": 1.2, "temperature": 0.6, "top_k": 20})
        assert wanted({"top_k": 3}, own, POSITIONS).sampler == Sampler(0.0, 1.0, 3, 1.2)
        assert wanted({"num_beams": 3, "length_penalty": 0.5}, model, POSITIONS).search == BeamSearch(3, 0.5)
        assert wanted({"no_repeat_ngram_size": 2}, model, POSITIONS).search == BeamSearch(1, no_repeat_ngram=2)

    @pytest.mark.parametrize(
        "given, told",
        [
            ({"typical_p": 0.5}, "field 'typical_p': is not known"), ({"do_sample": True}, "sampling needs a temperature"),
            ({"max_gen_toks": POSITIONS}, "64 new tokens leave nothing of the model's 64 positions"),
            ({"until": [3]}, "field 'until'"), ({"temperature": -1.0}, "field 'temperature'"),
        ],
    )  # fmt: skip
    def test_refused(self, given, told, model):
        with pytest.raises(InputError, match=told):
            wanted(given, model, POSITIONS)

    @pytest.mark.usefixtures("quick_compiler")
    def test_equal_requests_are_answered_once_unless_they_are_sampled(self, model, reader):
        greedy, seen = ("It", {"max_gen_toks": 6}), list[int]()
        sampled = ("It", {"max_gen_toks": 6, "do_sample": True, "temperature": 1.0})
        found = answers(
            model,
            reader,
            [greedy, sampled, greedy, sampled, sampled, ("", {"max_gen_toks": 6})],
            HOW,
            progress=seen.append,
        )
        assert found[0] == found[2] and len({found[1], found[3], found[4]}) == 3 and seen[-1] == 5
        assert found[1] == answers(model, reader, [sampled], HOW)[0]


@pytest.mark.slow
def test_a_mesh_gives_what_one_device_gives():
    script = Path(__file__).with_name("harness_on_devices.py")
    assert json.loads(finished([str(script)], os.environ | virtual_devices(4))) == {"scores": True, "answers": True}


def test_zoo_tasks():
    tasks = zoo_tasks(2, seed=0)
    data = tasks["zoo_choices"]["custom_dataset"]()
    assert data["test"].num_rows == data["train"].num_rows == 14
    for one in with_choices(list(data["test"])):
        assert one["choices"][one["place"]] == one["answer"] and len(set(one["choices"])) == len(one["choices"])
    found = known_tasks(["zoo_texts", "mmlu_*"], tasks, ["mmlu_a", "mmlu_b", "arc"])
    assert found == [tasks["zoo_texts"], "mmlu_a", "mmlu_b"]
    with pytest.raises(InputError, match=r"field 'tasks': there is no task 'ark'\. Did you mean 'arc'"):
        known_tasks(["ark"], tasks, ["arc"])


def test_rows_have_intervals():
    values = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "bpb,none": 2.0, "bpb_stderr,none": "N/A"}
    told = {"results": {"t": values}, "n-shot": {"t": 3}, "n-samples": {"t": {"effective": 25}}}
    first, second = rows_of(results_of(told))
    assert first == {
        "task": "t", "metric": "acc", "value": "0.5000", "95 %": "± 0.1960", "filter": "none", "shots": "3", "questions": "25",
    }  # fmt: skip
    assert (second["metric"], second["value"], second["95 %"]) == ("bpb", "2.0000", "")


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "fusion_jax.evals.harness.backend", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    fails(evaluate, [], capsys, "the package lm-eval is not installed", "pip install -e '.[lm-eval]'")
    fails(evaluate, ["--tasks", "none"], capsys, "field '--tasks'", "Name at least one task")
    fails(evaluate, ["--batch-size", "0"], capsys, "field '--batch-size'")


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)
class TestWithThePackage:
    """Beside lm-eval's own `hf` backend."""

    @pytest.fixture(autouse=True, scope="class")
    def _package(self):
        pytest.importorskip("lm_eval")
        pytest.importorskip("accelerate")

    def test_hf_gives_the_same(self, folder):
        from lm_eval.models.huggingface import HFLM

        from fusion_jax.evals.harness.backend import FusionLM

        ours = FusionLM(str(folder), batch_size="auto")
        theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, logits_cache=False)
        assert (ours.max_length, ours.prefix_token_id, ours.eot_token_id, ours.batch_size) == (
            theirs.max_length, theirs.prefix_token_id, theirs.eot_token_id, 32,
        )  # fmt: skip
        kinds = {
            "loglikelihood": ASKED, "loglikelihood_rolling": [(text,) for text in TEXTS[:3]],
            "generate_until": [(text, {"until": ["e"], "max_gen_toks": 12}) for text, _ in ASKED[:3]],
        }  # fmt: skip
        for kind, given in kinds.items():
            requests = [SimpleNamespace(args=args, task_name="t") for args in given]
            own, other = (getattr(lm, kind)(requests, disable_tqdm=True) for lm in (ours, theirs))
            if kind == "generate_until":
                assert own == other
            else:
                np.testing.assert_allclose(np.asarray(own, float), np.asarray(other, float), atol=1e-3)
        told = [{"role": "user", "content": "hi"}]
        assert ours.apply_chat_template(told) == theirs.apply_chat_template(told)
        assert ours.chat_template(True) == theirs.chat_template(True)
        assert ours.tok_encode("a b") == theirs.tok_encode("a b")

    @pytest.mark.slow
    @pytest.mark.usefixtures("quick_compiler")
    def test_the_page(self, folder, tmp_path, capsys):
        names = {name: str(tmp_path / name) for name in ("all.json", "each.jsonl")}
        args = [
            "--model",
            str(folder),
            "--per-skill",
            "1",
            "--out",
            names["all.json"],
            "--samples",
            names["each.jsonl"],
        ]
        attempt(evaluate, [*args, "--max-gen-toks", "8"])
        told = capsys.readouterr().out
        assert all(f"| {task} | {metric} |" in told for task, metric in [
            ("zoo_choices", "acc"), ("zoo_answers", "exact_match"), ("zoo_texts", "bits_per_byte"),
        ])  # fmt: skip
        stored = json.loads(Path(names["all.json"]).read_text())
        assert stored["n-samples"]["zoo_choices"]["effective"] == 7 and "samples" not in stored
        each = read_jsonl(names["each.jsonl"])
        assert len(each) == 21 and {"arguments", "resps", "acc"} <= set(each[0])
        fails(evaluate, args, capsys, "all.json", "exists already")
        fails(evaluate, ["--tasks", "zoo_choises"], capsys, "field '--tasks'", "Did you mean 'zoo_choices'")

    def test_arguments_of_the_command_line(self, folder):
        from fusion_jax.evals.harness.backend import FusionLM, texts_at_once

        made = FusionLM.create_from_arg_string(f"pretrained={folder},max_length=16", {"batch_size": 2, "device": "cpu"})
        assert (made.max_length, made.batch_size) == (16, 2)
        assert texts_at_once("auto:4") == 32 and texts_at_once("7") == 7
        with pytest.raises(InputError, match="field 'batch_size'"):
            texts_at_once("0")


def test_settings():
    with pytest.raises(InputError, match="field 'num_fewshot'"):
        HarnessSettings(num_fewshot=-2)
    told = {"samples": {"t": [{"doc_id": 0, "metrics": ["acc"], "acc": 1.0, "target": "x", "resps": [["y"]]}]}}
    (record,) = sample_records(told)
    assert (record["task"], record["acc"], record["target"]) == ("t", 1.0, "x")
