"""The shipped models: what the manifest says of them is what the folders hold and do."""

from __future__ import annotations

import json
import re
from functools import cache

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fusion_jax.data.chat import generation_prompt
from fusion_jax.errors import InputError
from fusion_jax.evals.accuracy import evaluate
from fusion_jax.models.folder import Model, load, logits
from fusion_jax.zoo import MODELS, model_path
from fusion_jax.zoo.specs import SPECS
from fusion_jax.zoo.tasks import SKILLS, prompts

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
SOURCES = tuple(s for s in SPECS if s.name != "target")


@cache
def manifest() -> dict:
    return json.loads((MODELS / "manifest.json").read_text())


@cache
def model(name: str) -> Model:
    return load(MODELS / name, dtype="float32")


def accuracy(name: str) -> dict[str, float]:
    return manifest()["models"][name]["accuracy"]


def test_the_manifest_tells_how_it_was_made():
    assert isinstance(manifest()["seed"], int) and manifest()["test_prompts_per_skill"] >= 50
    assert set(manifest()["models"]) == {s.name for s in SPECS} == {p.name for p in MODELS.iterdir() if p.is_dir()}
    for spec in SPECS:
        entry = manifest()["models"][spec.name]
        assert re.fullmatch(rf"python experiments/zoo\.py .*--only {spec.name}", entry["command"])
        assert entry["seconds"] > 0 and set(entry["accuracy"]) == {*SKILLS, "all"}
        assert entry["parameters"] == sum(x.size for x in jax.tree.leaves(model(spec.name).params))


def test_three_architectures_three_tokenizers_and_a_smaller_target():
    assert len({model(s.name).config.model_type for s in SOURCES}) == 3 == len({s.tokenizer for s in SOURCES})
    assert len({s.template for s in SPECS}) == 4 and len({s.style for s in SOURCES}) == 3
    sizes = {s.name: manifest()["models"][s.name]["parameters"] for s in SPECS}
    assert sizes["target"] == min(sizes.values()) < 0.7 * min(sizes[s.name] for s in SOURCES)
    for spec in SPECS:
        assert json.loads((MODELS / spec.name / "config.json").read_text())["dtype"] == "bfloat16"


@each_spec
def test_accuracy_is_what_the_manifest_says(spec):
    """Greedy answers of the folder to a share of the manifest's own problems, within what the share allows."""
    count, seed, asked = manifest()["test_prompts_per_skill"], manifest()["seed"], 24
    test = [r for skill in SKILLS for r in prompts(skill, count, split="test", seed=seed)[:asked]]
    rows, _ = evaluate(spec.name, load(MODELS / spec.name), test, max_new_tokens=28)
    for row in rows:
        stated = accuracy(spec.name)[row["skill"]]
        # A sample without replacement, four standard errors, and two answers that rounding to bfloat16 may turn.
        spread = np.sqrt(stated * (1 - stated) / row["count"]) * np.sqrt(1 - asked / count)
        assert abs(row["accuracy"] - stated) <= 4 * spread + 2 / row["count"], (row, stated)


@pytest.mark.parametrize("spec", SOURCES, ids=lambda s: s.name)
def test_a_source_is_strong_at_some_skills_and_weak_at_others(spec):
    skills = [v for k, v in accuracy(spec.name).items() if k != "all"]
    assert sum(v >= 0.8 for v in skills) >= 2 and sum(v <= 0.4 for v in skills) >= 2


def test_the_target_has_room_and_the_sources_know_better():
    """Better than nothing, far from the best source of each skill taken together."""
    best = {skill: max(accuracy(s.name)[skill] for s in SOURCES) for skill in SKILLS}
    assert 0.2 < accuracy("target")["all"] < np.mean(list(best.values())) - 0.2
    assert sum(best[k] >= accuracy("target")[k] + 0.2 for k in SKILLS) >= 3
    assert len({max(SOURCES, key=lambda s: accuracy(s.name)[k]).name for k in SKILLS}) == 3


@each_spec
def test_transformers_loads_the_folder_and_agrees(spec):
    ours = model(spec.name)
    theirs = AutoModelForCausalLM.from_pretrained(
        MODELS / spec.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    text = generation_prompt(ours.tokenizer, [{"role": "user", "content": "Remove c from a b c d e"}])
    tokens = np.asarray([ours.tokenizer(text, add_special_tokens=False)["input_ids"]], np.int32)
    with torch.no_grad():
        expected = theirs(torch.asarray(tokens, dtype=torch.long)).logits.numpy()
    assert np.abs(np.asarray(logits(ours, tokens)) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_paths_and_unknown_names():
    assert model_path("zoo:target") == MODELS / "target" and str(model_path("a/b")) == "a/b"
    with pytest.raises(InputError, match=r"the zoo has no model 'targe'.*llama-source"):
        model_path("zoo:targe")
