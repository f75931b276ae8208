"""Stores of teachers that vLLM read: a sample made by hand, what is refused, and a fusion that takes such a store."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import cache_teacher, distil, fusellm
from fusion_jax.data.documents import encode_documents, text_documents
from fusion_jax.data.loaders import load_texts
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.folder import load, logits, save, tokenizer_of
from fusion_jax.teachers.documents import read_store
from fusion_jax.teachers.store import TeacherStore, identity_of
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import SKILLS, documents
from tests.small import ROOT, attempt, fails, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

SAMPLE = Path(__file__).parents[1] / "golden" / "vllm"  # answers.jsonl: two texts of the zoo's target, k 2
TEXTS, ANSWERS = str(SAMPLE / "texts.txt"), str(SAMPLE / "answers.jsonl")
ARGS = ["--model", "zoo:target", "--texts", TEXTS, "--k", "2"]


def test_the_sample_becomes_a_store(tmp_path, capsys):
    """Entries in the order of their log-probs, the text's own token dropped where it is none of the two."""
    attempt(cache_teacher, [*ARGS, "--answers", ANSWERS, "--out", str(tmp_path / "store")])
    told = capsys.readouterr().out
    assert "| 2 | 2 | 0 | 11 |" in told and f"{(11.625 + 1.59375) / 9:.4f}" in told
    store = TeacherStore(tmp_path / "store", identity_of(tmp_path / "store"))
    first, second = store
    np.testing.assert_array_equal(first.ids, [306, 315, 288, 263, 273, 1])
    np.testing.assert_array_equal(
        first.topk_ids, [[315, 288], [263, 288], [273, 22], [273, 0], [302, 225], [22, 263]]
    )
    np.testing.assert_array_equal(
        first.topk_logprobs, [[-0.25, -2], [-0.5, -1.5], [-0.75, -1], [-0.125, -3], [-1, -1.25], [-1, -1]]
    )
    np.testing.assert_array_equal(second.topk_ids[-1], [306, 315])
    np.testing.assert_array_equal(first.metric, [0.25 + 1.5 + 7.25 + 0.125 + 2.5, 5])
    np.testing.assert_array_equal(second.metric, [0.0625 + 0.5 + 1 + 0.03125, 4])
    np.testing.assert_allclose(second.tail[0], 1 - np.exp(-0.0625) - np.exp(-4), rtol=1e-6)
    assert not first.logsumexp.any() and store.identity.model.startswith("given ")
    assert [first.offsets[-1].tolist(), second.offsets[1].tolist()] == [[11, 11], [1, 3]]
    attempt(cache_teacher, [*ARGS, "--answers", ANSWERS, "--out", str(tmp_path / "store")])
    assert "1 of 1 parts were there" in capsys.readouterr().out
    documents = text_documents(load_texts(TEXTS))
    reading = read_store(tmp_path / "store", "t", tokenizer_of(model_path("zoo:target")), documents, k=2, max_length=64)
    assert len(reading.rows) == 2 == len(reading.texts)


def test_eight_bits_are_scored_again_and_stay_eight(tmp_path, capsys):
    args = [*ARGS[:-1], "40", "--out", str(tmp_path / "store")]
    attempt(cache_teacher, [*args, "--log-probs", "8bit"])
    assert float(capsys.readouterr().out.strip().splitlines()[-1].split("|")[-2]) < 5e-3
    (kept,) = (json.loads(file.read_text()) for file in tmp_path.rglob("store.json"))
    assert kept["log_probs"] == "8bit" and kept["format"] == 2
    fails(cache_teacher, args, capsys, "another log_probs (8bit, now float16)")
    fails(cache_teacher, [*args, "--log-probs", "4bit"], capsys, "--log-probs")


def test_prompts_are_the_texts_and_one_more_token(tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    attempt(cache_teacher, [*ARGS, "--prompts", str(prompts), "--out", str(tmp_path / "store")])
    assert "2 prompts" in capsys.readouterr().out and not (tmp_path / "store").exists()
    choices = [answer.get("choices", [answer])[0] for answer in read_jsonl(ANSWERS)]
    assert [r["prompt"] for r in read_jsonl(prompts)] == [choice["prompt_token_ids"] for choice in choices]


def spoilt(change) -> list[dict]:
    """The sample's first answer changed, and the second as it is."""
    first, second = map(json.loads, Path(ANSWERS).read_text().splitlines())
    found = change(first)
    return [found if isinstance(found, dict) and "choices" in found else first, second]


@pytest.mark.parametrize("change, told", [
    (lambda a: a.pop("prompt_token_ids"), "record 1, field 'prompt_token_ids': is missing. Ask vLLM"),
    (lambda a: a.update(prompt_token_ids=3), "field 'prompt_token_ids': is no list"),
    (lambda a: a["prompt_token_ids"].insert(0, 1), "token 0 is 1, the tokenizer makes 306 of this text"),
    (lambda a: a["prompt_token_ids"].__setitem__(3, "a"), "token 3 is 'a', the tokenizer makes 263"),
    (lambda a: a["prompt_token_ids"].pop(), "ends with the text, and what follows its last token is unknown. Write"),
    (lambda a: a["prompt_token_ids"].append(1), "has 8 tokens, the text and one more are 7"),
    (lambda a: a["prompt_token_ids"].__delitem__(slice(3, None)), "has 3 tokens, the text and one more are 7"),
    (lambda a: a.pop("prompt_logprobs"), "field 'prompt_logprobs': is missing"),
    (lambda a: a["prompt_logprobs"].pop(), "field 'prompt_logprobs': has 6 entries for 7 tokens"),
    (lambda a: a["prompt_logprobs"].__setitem__(0, {}), "field 'prompt_logprobs[0]': is not null"),
    (lambda a: a["prompt_logprobs"].__setitem__(2, None), "field 'prompt_logprobs[2]': is no JSON object"),
    (lambda a: a["prompt_logprobs"][2].pop("263"), "field 'prompt_logprobs[2]': has 1 tokens of the vocabulary, k is 2"),
    (lambda a: a["prompt_logprobs"][2].update({"360": a["prompt_logprobs"][2].pop("263")}), "has 1 tokens of the vocab"),
    (lambda a: a["prompt_logprobs"][3].pop("263"), "field 'prompt_logprobs[3]': lacks token 263, which follows"),
    (lambda a: a["prompt_logprobs"][2].update({"x": {"logprob": -1.0}}), "has the key 'x', which is no token"),
    (lambda a: a["prompt_logprobs"][2].update({"-3": {"logprob": -1.0}}), "has the key '-3', which is no token"),
    (lambda a: a["prompt_logprobs"][2].update({"3": -1.0}), "has no log-prob of token 3"),
    (lambda a: a["prompt_logprobs"][2].update({"3": {"logprob": None}}), "has no log-prob of token 3"),
    (lambda a: a["prompt_logprobs"][2].update({"3": {"logprob": -1.0, "rank": "1"}}), "rank of token 3 that is no"),
    (lambda a: a["prompt_logprobs"][4].update({"0": {"logprob": 4.0}, "9": {"logprob": 3.0}}), "[4]': are no log-probs"),
    (lambda a: {"choices": [a, a]}, "field 'choices': is not one choice"),
    (lambda a: {"choices": []}, "field 'choices': is not one choice"),
])  # fmt: skip
def test_what_is_no_answer_to_the_prompts_is_told_by_record_and_field(tmp_path, capsys, change, told):
    answers = write(tmp_path / "answers.jsonl", spoilt(change))
    args = [*ARGS, "--answers", str(answers), "--out", str(tmp_path / "store")]
    fails(cache_teacher, args, capsys, f"{answers}, record 1", told)
    assert not (tmp_path / "store").exists()


def test_other_files_of_answers_are_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "store")]
    fails(cache_teacher, [*ARGS, "--answers", "nowhere.jsonl", *out], capsys, "nowhere.jsonl")
    one = tmp_path / "one.jsonl"
    one.write_text(Path(ANSWERS).read_text().splitlines()[0] + "\n\n")
    fails(cache_teacher, [*ARGS, "--answers", str(one), *out], capsys, "has 1 answers for 2 texts")
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(Path(ANSWERS).read_text().splitlines()[::-1]))
    fails(cache_teacher, [*ARGS, "--answers", str(turned), *out], capsys, f"{turned}, record 1", "makes 306")
    turned.write_text("{\n{}\n")
    fails(cache_teacher, [*ARGS, "--answers", str(turned), *out], capsys, f"{turned}, record 1", "is not valid JSON")
    attempt(cache_teacher, [*ARGS, "--answers", ANSWERS, *out])
    other = write(tmp_path / "other.jsonl", spoilt(lambda a: a["prompt_logprobs"][1]["315"].update(logprob=-0.5)))
    fails(cache_teacher, [*ARGS, "--answers", str(other), *out], capsys, "the store was written with another model")
    fails(cache_teacher, [*ARGS, "--answers", ANSWERS, "--prompts", "p.jsonl", *out], capsys, "--prompts")
    assert not Path("p.jsonl").exists()


def test_stores_of_sources_are_as_many_as_the_sources(tmp_path, capsys):
    args = ["--out", str(tmp_path / "run"), "--practice", "0", "--target-practice", "0", "--source-stores"]
    told = "field '--source-stores': 2 are given for 3 sources"
    fails(fusellm, [*args, "a", "b"], capsys, told)
    fails(fusellm, [*args, "a", "-", "-"], capsys, "a: holds no teacher store")


@pytest.fixture
def server(tmp_path):
    """A server that answers the sample's prompts, at an address; it keeps what it was asked for."""
    choices = [answer.get("choices", [answer])[0] for answer in read_jsonl(ANSWERS)]
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            (choice,) = (c for c in choices if c["prompt_token_ids"] == asked[-1][1]["prompt"])
            raw = json.dumps({"id": "cmpl-1", "choices": [{"index": 0, **choice}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *told):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}", asked
        one.shutdown()


def test_the_page_s_lines_ask_a_server_for_every_prompt(tmp_path, monkeypatch, server):
    address, asked = server
    page = (ROOT / "docs/stores.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "prompt_logprobs" in block)
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    attempt(cache_teacher, [*ARGS, "--prompts", str(prompts)])
    monkeypatch.setattr("sys.argv", ["ask.py", str(prompts), str(answers)])
    exec(compile(code.replace("http://localhost:8000", address), "docs/stores.md", "exec"), {})
    assert [path for path, _ in asked] == ["/v1/completions"] * 2
    assert all(a["prompt_logprobs"] == 10 and a["return_token_ids"] and a["max_tokens"] == 1 for _, a in asked)
    attempt(cache_teacher, [*ARGS, "--answers", str(answers), "--out", str(tmp_path / "served")])
    attempt(cache_teacher, [*ARGS, "--answers", ANSWERS, "--out", str(tmp_path / "given")])
    stores = [TeacherStore(folder, identity_of(folder)) for folder in (tmp_path / "served", tmp_path / "given")]
    for ours, other in zip(*stores, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, other, strict=True))


def as_vllm(model, prompts: Path, k: int) -> list[dict]:
    """What vLLM's server would say: the k most probable tokens and the prompt's own, with their ranks."""
    out = []
    for record in read_jsonl(prompts):
        ids = record["prompt"]
        every = np.asarray(jax.nn.log_softmax(logits(model, np.asarray([ids])).astype(np.float32)))[0]
        given = [None]
        for own, row in zip(ids[1:], every):
            ranked = np.argsort(-row, kind="stable")
            chosen = list(dict.fromkeys([own, *ranked[:k].tolist()]))
            rank = {int(i): n for n, i in enumerate(ranked, 1)}
            given.append({str(i): {"logprob": float(row[i]), "rank": rank[i], "decoded_token": None} for i in chosen})
        out.append({"choices": [{"prompt_token_ids": ids, "prompt_logprobs": given}]})
    return out


def target_in_float32(folder: Path) -> str:
    """The zoo's target, so that what is trained is not rounded to 16 bits, whose neighbours are 1e-4 apart and more."""
    save(load(model_path("zoo:target")), folder, dtype="float32")
    return str(folder)


@pytest.mark.slow
def test_a_fusion_learns_the_same_from_a_store_as_from_the_model_itself(tmp_path, capsys):
    """A source that reads in the run, one whose store was written before, one that another program read."""
    texts = write(tmp_path / "texts.jsonl", [{"text": t} for t in documents(dict.fromkeys(SKILLS, 3), split="train", seed=0)])
    given = ["--texts", str(texts), "--max-length", "40"]
    args = [
        *given, "--sources", "zoo:qwen-source", "--practice", "0", "--target-practice", "0", "--arms", "FuseLLM",
        "--train.epochs", "1", "--train.batch-size", "4", "--teacher-batch", "16",
        "--target", target_in_float32(tmp_path / "target"),
    ]  # fmt: skip
    teacher = [*given, "--model", "zoo:qwen-source", "--windows-for", "zoo:target", "zoo:qwen-source", "--batch-size", "16"]
    attempt(cache_teacher, [*teacher, "--out", str(tmp_path / "store")])
    attempt(cache_teacher, [*teacher, "--prompts", str(tmp_path / "prompts.jsonl")])
    model = load(model_path("zoo:qwen-source"))
    answers = write(tmp_path / "answers.jsonl", as_vllm(model, tmp_path / "prompts.jsonl", 10))
    attempt(cache_teacher, [*teacher, "--answers", str(answers), "--out", str(tmp_path / "given")])
    weights = {}
    for name, stores in {"own": [], "store": ["store"], "given": ["given"], "8bit": []}.items():
        more = ["--source-stores", *(str(tmp_path / folder) for folder in stores)] if stores else []
        more += ["--log-probs", name] if name == "8bit" else []
        run = tmp_path / f"run-{name}"
        attempt(fusellm, ["--out", str(run), *args, *more])
        weights[name] = load_file(run / "model/model.safetensors")
        assert (run / "teachers/qwen-source").exists() == (not stores)
    for tensor, value in weights["own"].items():
        np.testing.assert_array_equal(weights["store"][tensor], value)
        np.testing.assert_allclose(weights["given"][tensor], value, atol=1e-4)
    losses = [read_jsonl(tmp_path / f"run-{name}/arms/FuseLLM/metrics.jsonl") for name in ("own", "8bit")]
    whole, eight = ([step["loss/fusion"] for step in steps] for steps in losses)
    np.testing.assert_allclose(eight, whole, rtol=2e-3)
    assert eight != whole
    longer = ["--out", str(tmp_path / "longer"), *args, "--max-length", "12", "--source-stores", str(tmp_path / "store")]
    fails(fusellm, longer, capsys, "the store was written with other documents", "--max-length")


@pytest.mark.slow
def test_a_fusion_of_chats_learns_the_same_from_a_store_and_from_answers(tmp_path, capsys):
    """Each model reads chats through its own template; one is too long for the other's tokens, and one is broken."""
    chats = [{"prompt": f"What is {n} + {n}?", "response": f"The answer is {2 * n}."} for n in range(40)]
    chats[7]["response"] = " and ".join(map(str, range(60)))
    file = write(tmp_path / "chats.jsonl", [*chats, {"prompt": "no answer"}])
    given = ["--chats", str(file), "--max-length", "64", "--on-bad", "skip"]
    teacher = [*given, "--model", "zoo:qwen-source", "--windows-for", "zoo:target", "zoo:qwen-source", "--batch-size", "16"]
    attempt(cache_teacher, [*teacher, "--out", str(tmp_path / "store")])
    assert "longer than max_length" in capsys.readouterr().out
    attempt(cache_teacher, [*teacher, "--prompts", str(tmp_path / "prompts.jsonl")])
    answers = write(tmp_path / "answers.jsonl", as_vllm(load(model_path("zoo:qwen-source")), tmp_path / "prompts.jsonl", 10))
    attempt(cache_teacher, [*teacher, "--answers", str(answers), "--out", str(tmp_path / "given")])
    args = [
        *given, "--sources", "zoo:qwen-source", "--arms", "kl", "--train.epochs", "1", "--train.batch-size", "8",
        "--teacher-batch", "16", "--student", target_in_float32(tmp_path / "target"),
    ]  # fmt: skip
    weights = {}
    for name in ("own", "store", "given"):
        stores = [] if name == "own" else ["--source-stores", str(tmp_path / name)]
        attempt(distil, ["--out", str(tmp_path / f"run-{name}"), *args, *stores])
        weights[name] = load_file(tmp_path / f"run-{name}/students/kl/model.safetensors")
    for tensor, value in weights["own"].items():
        np.testing.assert_array_equal(weights["store"][tensor], value)
        np.testing.assert_allclose(weights["given"][tensor], value, atol=1e-4)
    fails(cache_teacher, [*given, "--texts", str(file), "--out", str(tmp_path / "both")], capsys, "given beside --chats")


def test_encoded_texts_of_the_sample_are_those_of_its_answers():
    texts = encode_documents(tokenizer_of(model_path("zoo:target")), text_documents(load_texts(TEXTS)), max_length=64)
    for text, answer in zip(texts, read_jsonl(ANSWERS), strict=True):
        ids = answer.get("choices", [answer])[0]["prompt_token_ids"]
        assert ids == [*text.ids.tolist(), ids[0]]
