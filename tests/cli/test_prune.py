"""Pruning by one command: texts in, a folder, the official file and a report out; interrupted, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from experiments import prune
from fusion_jax.jsonl import read_jsonl
from fusion_jax.prune import scoring
from fusion_jax.zoo.tasks import corpus
from tests.small import attempt, fails, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("prune")
    texts, more = ([{"text": text} for text in corpus(seed, 12)] for seed in (3, 4))
    files = [write(folder / f"{name}.jsonl", some) for name, some in (("texts", texts), ("more", more))]
    model = small_folder(folder / "model", num_hidden_layers=3, initializer_range=0.2)
    options = {"model": model, "calibration": files[0], "held-out-texts": files[1], "length": 24, "states": 3, "rows": 4}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_a_pruned_folder_and_its_report(given, tmp_path, monkeypatch):
    """Killed within the third step, the search goes on behind the second; the result is that of a run in one go."""
    once, again = tmp_path / "once", tmp_path / "again"
    attempt(prune, [*given, "--blocks", "4", "--ratio", "0.1", "--out", str(once)])
    calls, real, killed = [], scoring._Walk.all, []

    def stopping(self, candidates, labels):
        calls.append(len(self.removed))
        if len(self.removed) == 2 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        return real(self, candidates, labels)

    monkeypatch.setattr(scoring._Walk, "all", stopping)
    with pytest.raises(SystemExit):
        attempt(prune, [*given, "--blocks", "4", "--ratio", "0.1", "--out", str(again)])
    calls.clear()
    attempt(prune, [*given, "--blocks", "4", "--ratio", "0.1", "--resume", "True", "--out", str(again)])
    assert 0 not in calls[: calls.index(2)] and 1 not in calls[: calls.index(2)]
    for name in ("removed.json", "curves.jsonl", "results.json", "model/model.safetensors", "model/config.json"):
        assert (once / name).read_bytes() == (again / name).read_bytes(), name

    official = json.loads((once / "removed.json").read_text())
    assert [len(official[str(n)]) for n in range(1, 5)] == [1, 2, 3, 4]
    curves = read_jsonl(once / "curves.jsonl")
    assert {c["order"] for c in curves} >= {"search", "whole layers", "one shot", "layer influence", "chance"}
    at = {(c["order"], c["blocks"]): c["perplexity"] for c in curves}
    assert len({value for (_, number), value in at.items() if not number}) == 1  # the whole model's
    report, results = (once / "report.md").read_text(), json.loads((once / "results.json").read_text())
    assert "| 4 | " in report and (once / "order.png").exists() and (once / "perplexity.png").exists()
    lacking, found = results["pruned"]["ratio"][0], results["search"]["perplexity"][0]
    count = next(number for number in range(1, 5) if at["search", number] == found)
    assert lacking >= 0.1 and [c["ratio"] < 0.1 for c in curves if c["order"] == "search"][:count] == [True] * count
    model = transformers.AutoModelForCausalLM.from_pretrained(once / "model", dtype=torch.float32).eval()
    gone = {tuple(block) for block in official[str(count)]}
    assert model.config.num_hidden_layers == 3 - sum({("mha", i), ("mlp", i)} <= gone for i in range(3))


@pytest.mark.parametrize(("options", "told"), [
    (["--ratio", "0.9", "--blocks", "1"], "'--ratio': 0.9 of the parameters are asked for, the search removes 0."),
    (["--length", "120"], "a row has 120"), (["--unit", "heads"], "heads"),
], ids=["ratio", "short", "unit"])  # fmt: skip
def test_what_cannot_be_done_is_refused(given, tmp_path: Path, options, told, capsys):
    small = write(tmp_path / "small.jsonl", [{"text": "Too short."}])
    words = list(given)
    if "--length" in options:
        words[words.index("--calibration") + 1] = str(small)
    fails(prune, [*words, *options, "--out", str(tmp_path / "run")], capsys, told)
