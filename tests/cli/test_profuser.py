"""ProFuser by one command: who is best in either mode, checked by hand; both stages as one training; refused input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from experiments import profuser
from fusion_jax.jsonl import read_jsonl
from fusion_jax.zoo import model_path
from tests.small import attempt, fails, write

pytestmark = pytest.mark.usefixtures("quick_compiler")
SOURCES = ("plants-target", "plants-llama", "plants-qwen")
GIVEN = {
    "sources": "zoo:plants-llama zoo:plants-qwen", "zoo-instructions": 48, "test-per-skill": 4, "arms": "SFT profuser",
    "train.batch-size": 8, "train.log-every": 1, "loss.both-epochs": 1, "teacher-batch": 16, "k": 4,
}  # fmt: skip


def words(out: Path, **more: object) -> list[str]:
    every = GIVEN | {"out": out} | {name.replace("_", "-"): value for name, value in more.items()}
    return [word for name, value in every.items() if value != "" for word in (f"--{name}", *str(value).split())]


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("profuser") / "run"
    attempt(profuser, words(out))
    return out


def test_winners_by_reading_are_those_of_transformers(once):
    """The mean loss of the answer's tokens and of what ends the turn, in each model's own template."""
    asked = {one["prompt_id"]: one for one in read_jsonl(once / "instructions.jsonl")}
    labels = read_jsonl(once / "advantage.jsonl")
    assert len(labels) == 48
    for place, name in enumerate(SOURCES):
        folder = model_path(f"zoo:{name}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for label in labels[:5]:
            one = asked[label["prompt_id"]]
            chat = [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["response"]}]
            opening = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
            whole = tokenizer.apply_chat_template(chat, tokenize=False)
            ids = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            scored = [end > len(opening) for _, end in ids["offset_mapping"]]
            special = tokenizer.get_added_vocab().values()
            last = next(i for i, token in enumerate(ids["input_ids"]) if scored[i] and token in special)
            scored = torch.tensor([*scored[: last + 1], *[False] * (len(scored) - last - 1)])
            tokens = torch.tensor(ids["input_ids"])
            with torch.no_grad():
                losses = torch.nn.functional.cross_entropy(model(tokens[None]).logits[0, :-1], tokens[1:], reduction="none")
            assert label["ce"][place] == pytest.approx(float(losses[scored[1:]].mean()), rel=1e-4)
    assert all(label["train_winner"] == SOURCES[int(np.argmin(label["ce"]))] for label in labels)


def test_winners_by_writing_have_most_votes(once):
    answers = {name: read_jsonl(once / f"responses/{name}.jsonl") for name in SOURCES}
    for number, label in enumerate(read_jsonl(once / "advantage.jsonl")):
        own = [answers[name][number] for name in SOURCES]
        assert all(one["prompt_id"] == label["prompt_id"] for one in own) and len(label["scores"]) == 3
        assert label["valid"] == [bool(one["text"] and one["finished"]) for one in own]
        scores = np.where(label["valid"], np.asarray(label["scores"], float), -np.inf)
        votes = np.bincount(scores.argmax(1), minlength=3)
        if any(label["valid"]):
            assert votes.tolist() == label["votes"] and votes[SOURCES.index(label["infer_winner"])] == votes.max()


def test_both_arms_have_as_many_steps_and_learn(once):
    found = {name: read_jsonl(once / f"arms/{name}/metrics.jsonl") for name in ("SFT", "profuser")}
    assert len({len(records) for records in found.values()}) == 1
    ours = found["profuser"]
    first = sum(record["weight/infer"] == 1.0 for record in ours)
    assert 0 < first < len(ours)
    assert all((r["weight/infer"], r["weight/train"]) == (1.0, 0.0) for r in ours[:first])
    assert all((r["weight/infer"], r["weight/train"]) == pytest.approx((0.1, 1.0)) for r in ours[first:])
    assert all(r["weight/train"] == 1.0 for r in found["SFT"])
    assert found["SFT"][-1]["nll/train"] < found["SFT"][0]["nll/train"]
    report = (once / "report.md").read_text()
    for told in ("wins by reading", "unanimous votes", "one_to_one", "Bits per byte", "plants-qwen"):
        assert told in report
    results = json.loads((once / "results.json").read_text())
    assert {"SFT", "profuser", "plants-target"} <= set(results) and "bits per byte" in results["profuser"]
    transformers.AutoModelForCausalLM.from_pretrained(once / "model")


@pytest.mark.parametrize(("more", "told"), [
    ({"judges": "none-of-them"}, "--judges"), ({"judges": "zoo:plants-llama"}, "has 0 scores"),
    ({"sample.num-samples": 2}, "answers an instruction once"), ({"least-coverage": 0.9999}, "tokens get a row of 'plants-"),
    ({"train.batch-size": 7}, "'--train.batch-size': 7 rows are no pairs"), ({"arms": "SFT SFT"}, "'SFT' stands twice"),
    ({"instructions": "TURNS"}, "record 1, field 'prompt': has a system message or more than one user message"),
    ({"instructions": "PLAIN", "verifiers": "fields"}, "answer"), ({"loss.first-epochs": 0, "loss.both-epochs": 0}, "no step"),
    ({"train.epochs": 2}, "'--train.epochs': is not read"), ({"sources": "zoo:plants-target"}, "two models are called 'plants-target'"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_done_is_refused(tmp_path, capsys, more, told):
    turns = [{"role": r, "content": "a b"} for r in ("user", "assistant", "user", "assistant")]
    made = {"TURNS": [{"messages": turns}], "PLAIN": [{"prompt": "Describe ba de fi go.", "response": "red"}]}
    for name, value in more.items():
        if value in made:
            more = more | {name: write(tmp_path / "given.jsonl", made[value])}
    fails(profuser, words(tmp_path / "run", **more), capsys, told)


def test_live_sources_teach_what_stored_ones_do(once, tmp_path):
    attempt(profuser, words(tmp_path / "live", arms="profuser", teachers="live"))
    stored, live = (read_jsonl(out / "arms/profuser/metrics.jsonl") for out in (once, tmp_path / "live"))
    assert len(live) == len(stored) > 10
    for one, other in zip(stored, live, strict=True):
        assert other == pytest.approx(one, rel=2e-4, abs=1e-5)
    assert not (tmp_path / "live" / "teachers").exists() and not (tmp_path / "live" / "winners").exists()
    assert read_jsonl(tmp_path / "live" / "advantage.jsonl") == read_jsonl(once / "advantage.jsonl")


def test_the_report_counts_what_sources_and_judges_compute(once):
    """FLOPs of reading: two for each token and number of a matmul, the embedding's left out, and attention's."""
    lines = [line.split("|")[1:-1] for line in (once / "report.md").read_text().splitlines() if line.startswith("|")]
    table = {(one[0].strip(), one[1].strip()): one[2:] for one in lines if len(one) == 4}
    assert {what for name, what in table if name == "plants-qwen"} == {"reading teachers", "writing", "reading winners"}
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path("zoo:plants-qwen"))
    matmuls = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2)  # the tied embedding is the head
    tokens, flops = (float(cell.strip().replace(",", "")) for cell in table["plants-qwen", "reading teachers"])
    assert 2 * matmuls * tokens < 1e9 * flops < 2.4 * matmuls * tokens
    assert any(what == "judging" for _, what in table)
