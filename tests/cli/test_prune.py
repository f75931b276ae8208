"""Pruning by one command: texts in, a folder, the official file and a report out; interrupted, used again, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import fusion_jax as fj
from experiments import prune
from fusion_jax.files import write_json
from fusion_jax.jsonl import read_jsonl
from fusion_jax.prune import scoring
from fusion_jax.runs import pruned
from fusion_jax.zoo.tasks import corpus
from tests.programs import Program
from tests.small import attempt, fails, script, small_folder, virtual_devices, write

pytestmark = pytest.mark.usefixtures("quick_compiler")
FILES = ("removed.json", "results.json", "curves/search.jsonl", "model/model.safetensors", "model/config.json")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("prune")
    texts, more = ([{"text": text} for text in corpus(seed, 12)] for seed in (3, 4))
    files = [write(folder / f"{name}.jsonl", some) for name, some in (("texts", texts), ("more", more))]
    model = small_folder(folder / "model", num_hidden_layers=3, initializer_range=0.2, num_key_value_heads=2)
    tests = write(folder / "tests.jsonl", [{"prompt": "Add: 1 + 2", "answer": "3"}])
    return {
        "model": model, "calibration": files[0], "held-out-texts": files[1], "length": 24, "states": 3, "rows": 4,
        "calibration-tokens": 6 * 23, "shares": 0.1, "ratio": 0, "test-prompts": tests, "eval-new-tokens": 2,
        "compared": "random influence layers",
    }  # fmt: skip


def words(given: dict[str, object], out: Path, **more: object) -> list[str]:
    every = given | {"out": out} | {name.replace("_", "-"): value for name, value in more.items()}
    return [word for name, value in every.items() if value != "" for word in (f"--{name}", *str(value).split())]


@pytest.fixture(scope="module")
def once(given, tmp_path_factory) -> Path:
    """A run in one go."""
    out = tmp_path_factory.mktemp("once") / "run"
    attempt(prune, words(given, out, blocks=3))
    return out


def test_a_pruned_folder_and_its_report(once, given):
    official = json.loads((once / "removed.json").read_text())
    assert [len(official[str(n)]) for n in range(1, 4)] == [1, 2, 3]
    curves = {name: read_jsonl(once / f"curves/{name}.jsonl") for name in ("random", "influence", "layers", "search")}
    assert len({points[0]["perplexity"] for points in curves.values()}) == 1  # the whole model's
    most = curves["search"][-1]["ratio"]
    assert all(points[-1]["ratio"] >= most - 1e-9 > points[-2]["ratio"] for points in curves.values())
    results = json.loads((once / "results.json").read_text())
    assert list(results)[-1] == "search" and next(iter(results["search"])) == "perplexity"
    assert results["search"]["perplexity"] == [curves["search"][-1]["perplexity"]] and "accuracy" in results["layers"]
    report = (once / "report.md").read_text()
    assert "| 3 | " in report and "FLOPs" in report and "a token of" not in report
    assert (once / "order.png").exists() and (once / "curves.png").exists()
    model = transformers.AutoModelForCausalLM.from_pretrained(once / "model", dtype=torch.float32).eval()
    gone = {tuple(block) for block in official["3"]}
    assert model.config.num_hidden_layers == 3 - sum({("mha", i), ("mlp", i)} <= gone for i in range(3))
    rows = torch.tensor(calibrated(once, given))
    with torch.no_grad():
        losses = [float(model(row[None], labels=row[None].long()).loss) for row in rows]
    step = read_jsonl(once / "search/003.jsonl")[0]
    assert step["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)


def calibrated(run: Path, given) -> np.ndarray:
    """The rows of the run's own file, by the tokenizer of transformers."""
    text = "\n\n".join(record["text"] for record in read_jsonl(run / "calibration.jsonl"))
    ids = transformers.AutoTokenizer.from_pretrained(given["model"])(text)["input_ids"]
    return np.asarray(ids[: 6 * 24]).reshape(6, 24)


def test_interrupted_it_goes_on_behind_its_last_step(once, given, tmp_path, monkeypatch):
    out, calls, real, killed = tmp_path / "again", [], scoring._Walk.all, []

    def stopping(self, candidates, labels):
        calls.append(len(self.removed))
        if len(self.removed) == 2 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        return real(self, candidates, labels)

    monkeypatch.setattr(scoring._Walk, "all", stopping)
    with pytest.raises(SystemExit):
        attempt(prune, words(given, out, blocks=3))
    calls.clear()
    attempt(prune, words(given, out, blocks=3, resume=True))
    assert calls[0] == 2
    for name in FILES:
        assert (once / name).read_bytes() == (out / name).read_bytes(), name


def test_a_search_is_used_again(once, given, tmp_path):
    """Its first two steps, by their number and by the share that they take."""
    file = once / "removed.json"
    share = read_jsonl(once / "curves/search.jsonl")[2]["ratio"]
    for name, more in (("blocks", {"blocks": 2}), ("ratio", {"ratio": f"{share - 1e-4:.6f}"})):
        out = tmp_path / name
        attempt(prune, words(given, out, removed=file, compared="random", test_prompts="", **more))
        official = json.loads(file.read_text())
        assert json.loads((out / "removed.json").read_text()) == {step: official[step] for step in ("1", "2")}
        assert not (out / "search").exists() and (out / "model/model.safetensors").exists()


@pytest.mark.parametrize("recovery", ["sft", *(pytest.param(how, marks=pytest.mark.slow) for how in ("distil", "lora"))])
def test_a_pruned_model_learns_again(once, given, tmp_path, recovery):
    """The blocks that are gone stay gone, the others learn."""
    training = {"train.epochs": 8, "train.batch-size": 8, "train.optimizer.learning-rate": 5e-3}
    more = {"removed": once / "removed.json", "test-prompts": "", "compared": "random", "shares": 0.2}
    out = tmp_path / "run"
    adapters, recovery = {"train.lora-rank": 4} if recovery == "lora" else {}, recovery.replace("lora", "sft")
    texts = {"recovery": recovery, "recovery-texts": given["calibration"]} | training | adapters
    attempt(prune, words(given | more | texts, out))
    results = json.loads((out / "results.json").read_text())
    assert list(results)[-1] == recovery and results[recovery]["perplexity"] < results["search"]["perplexity"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    kept = [i for i in range(3) if not {("mha", i), ("mlp", i)} <= gone_of(once)]
    for place, layer in enumerate(model.model.layers):
        assert (layer.self_attn.o_proj.weight == 0).all() == (("mha", kept[place]) in gone_of(once))
        assert (layer.mlp.down_proj.weight == 0).all() == (("mlp", kept[place]) in gone_of(once))


def test_what_is_served_without_the_blocks(once, given, tmp_path):
    """The native form has no tensor of a removed block, and computes what the pruned model of its own family does; what
    cannot be written in a form is refused before the search."""
    more = {"removed": once / "removed.json", "test-prompts": "", "compared": "random"}
    attempt(prune, words(given | more, tmp_path / "run", form="native"))
    small, same = fj.load(tmp_path / "run/model"), fj.load(once / "model")
    gone = {(layer, {"mha": "self_attn", "mlp": "mlp"}[kind]) for kind, layer in gone_of(once)}
    names = load_file(tmp_path / "run/model/model.safetensors")
    assert not any(f"layers.{layer}.{part}." in name for layer, part in gone for name in names)
    tokens = np.arange(3, 23)[None]
    np.testing.assert_allclose(fj.logits(small, tokens), fj.logits(same, tokens), atol=1e-5)


def gone_of(run: Path) -> set[tuple[str, int]]:
    return {tuple(block) for block in json.loads((run / "removed.json").read_text())["3"]}


@pytest.mark.slow
def test_several_devices_make_the_same_search(once, given, tmp_path):
    out = tmp_path / "eight"
    more = {"test-prompts": "", "compared": "random", "train.mesh-tensor": 2}
    program = Program(
        script("prune", *words(given | more, out, blocks=3)),
        os.environ | virtual_devices(8) | {"JAX_PLATFORMS": "cpu"},
    )
    _, errors = program.communicate()
    assert program.returncode == 0, errors
    assert (out / "removed.json").read_bytes() == (once / "removed.json").read_bytes()
    for number in (1, 2, 3):
        ours, one = (read_jsonl(run / f"search/{number:03}.jsonl")[0] for run in (out, once))
        values = [[s["perplexity"] for s in step["scores"]] for step in (ours, one)]
        np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize(("more", "told"), [
    ({"ratio": 0.99}, "'--ratio': 0.99 of the parameters cannot be removed by --unit mix"),
    ({"blocks": 6}, "'--blocks': 6 removals are more than can be made: there are 6, one of which has to stay. Give 5 or"),
    ({"unit": "mha", "blocks": 4}, "'--blocks': 4 removals are more than can be made: there are 3. Give 3 or"),
    ({"blocks": 2, "ratio": 0.1}, "'--ratio': stands beside --blocks"),
    ({"length": 120, "calibration": "SHORT", "calibration-tokens": 0}, "the 1 documents have"),
    ({"unit": "heads"}, "heads"), ({"decode-on": "v9-8"}, "v9-8"), ({"documents": 10**6}, "'--documents': 1000000 are more than the"),
    ({"model": "T5"}, "has an encoder"), ({"k": 3}, "'--k': does nothing in a run without --recovery"),
    ({"train.epochs": 3}, "'--train': trains nothing in a run without --recovery"),
    ({"problems": 3}, "'--problems': does nothing in a run with texts of your own"), ({"shares": 1.5}, "1.5 is out of range"),
    ({"calibration": ""}, "'--calibration': is missing beside --held-out-texts"),
    ({"removed": "SHORT-ONE", "preset": "paper", "compared": ""}, "'--calibration': judges nothing"),
    ({"removed": "BROKEN"}, "'2': lacks a block that the step before has removed"),
    ({"removed": "OTHER"}, "a layer from 0 to 2"), ({"removed": "SHORT-ONE", "blocks": 4}, "'--blocks': the 1 steps"),
    ({"removed": "SHORT-ONE", "unit": "mha"}, "'--unit': does nothing in --removed"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_done_is_refused(given, tmp_path, more, told, capsys):
    made = {
        "SHORT": lambda path: write(path, [{"text": "Too short."}]),
        "BROKEN": lambda path: write_json(path, {"1": [["mha", 0]], "2": [["mlp", 0]]}),
        "OTHER": lambda path: write_json(path, {"1": [["mha", 9]]}),
        "SHORT-ONE": lambda path: write_json(path, {"1": [["mha", 0]]}),
        "T5": lambda path: small_t5(path),
    }
    for name, value in more.items():
        if value in made:
            made[value](tmp_path / f"given.json{'l' * (value == 'SHORT')}")
            more = more | {name: tmp_path / f"given.json{'l' * (value == 'SHORT')}"}
    fails(prune, words(given, tmp_path / "run", **more), capsys, told)
    assert not (tmp_path / "run" / "search").exists()


def small_t5(path: Path) -> None:
    config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)


def test_measures_between_two_removals():
    """In proportion of the logarithm; beyond the last removal, and where one is not finite, nothing."""
    points = [
        {"ratio": 0.0, "perplexity": 2.0, "accuracy": 1.0}, {"ratio": 0.2, "perplexity": 8.0, "accuracy": 0.5},
        {"ratio": 0.4, "perplexity": None, "accuracy": 0.0},
    ]  # fmt: skip
    assert pruned.perplexity_at(points, 0.1) == pytest.approx(4.0) and pruned.accuracy_at(points, 0.1) == 1.0
    assert pruned.perplexity_at(points, 0.2) == 8.0 and pruned.accuracy_at(points, 0.2) == 0.5
    assert pruned.perplexity_at(points, 0.3) is None and pruned.perplexity_at(points[:2], 0.3) is None
