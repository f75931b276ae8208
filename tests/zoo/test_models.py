"""The shipped models: what the manifest says of them is what the folders hold and do."""

from __future__ import annotations

import json
import re
from functools import cache

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fusion_jax.data.chat import generation_prompt
from fusion_jax.errors import InputError
from fusion_jax.evals.accuracy import evaluate
from fusion_jax.models.folder import Model, load, logits
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.zoo import MODELS, drafts, model_path, plants
from fusion_jax.zoo.dialogues import DialogueLessons
from fusion_jax.zoo.specs import EDITOR, EVERY, JUDGES, PLANT_MODELS, SKILL_LESSONS, SPECS, PlantLessons, ZooSpec
from fusion_jax.zoo.tasks import SKILLS

each_spec = pytest.mark.parametrize("spec", EVERY, ids=lambda s: s.name)
SOURCES = tuple(s for s in SPECS if s.name != "target")
PLANT_SOURCES = tuple(s for s in PLANT_MODELS if s.name != "plants-target")


@cache
def manifest() -> dict:
    return json.loads((MODELS / "manifest.json").read_text())


@cache
def model(name: str) -> Model:
    return load(MODELS / name, dtype="float32")


def skills(spec: ZooSpec) -> list[str]:
    return [plants.SKILL] if isinstance(spec.lessons, PlantLessons | DialogueLessons) else list(SKILLS)


def accuracy(name: str) -> dict[str, float]:
    return manifest()["models"][name]["accuracy"]


def test_the_manifest_tells_how_it_was_made():
    assert isinstance(manifest()["seed"], int) and manifest()["test_prompts_per_skill"] >= 50
    named = {s.name for s in (*EVERY, *JUDGES)}
    assert set(manifest()["models"]) == named == {p.name for p in MODELS.iterdir() if p.is_dir()}
    for spec in EVERY:
        entry = manifest()["models"][spec.name]
        assert re.fullmatch(rf"python experiments/zoo\.py .*--only {spec.name}", entry["command"])
        assert entry["seconds"] > 0 and set(entry["accuracy"]) == {*skills(spec), "all"}
        assert entry["parameters"] == sum(x.size for x in jax.tree.leaves(model(spec.name).params))


@pytest.mark.parametrize("spec", JUDGES, ids=lambda s: s.name)
def test_judges_rank_as_the_manifest_says_and_as_transformers_does(spec):
    entry, judge = manifest()["models"][spec.name], model(spec.name)
    assert re.fullmatch(rf"python experiments/zoo\.py .*--only {spec.name}", entry["command"]) and entry["ranked"] > 0.7
    pairs = drafts.graded(plants.prompts(100, split="validation", seed=1), seed=1)
    asked = [{"prompt": p["prompt"], "response": p[side]} for p in pairs for side in ("chosen", "rejected")]
    scores = np.asarray([one["reward"] for one in score_responses(judge, asked, batch_size=64)])
    chosen, rejected = scores.reshape(-1, 2).T
    assert abs((chosen > rejected).mean() - entry["ranked"]) < 0.15
    theirs = AutoModelForSequenceClassification.from_pretrained(
        MODELS / spec.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for one, score in zip(asked[:4], scores[:4], strict=True):
        chat = [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["response"]}]
        text = judge.tokenizer.apply_chat_template(chat, tokenize=False)
        ids = torch.tensor([judge.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            assert float(theirs(ids).logits[0, 0]) == pytest.approx(float(score), abs=1e-3)


@pytest.mark.parametrize(("specs", "target"), [(SPECS, "target"), (PLANT_MODELS, "plants-target")])
def test_three_architectures_three_tokenizers_and_a_smaller_target(specs, target):
    sources = [s for s in specs if s.name != target]
    assert len({model(s.name).config.model_type for s in sources}) == 3 == len({s.tokenizer for s in sources})
    assert len({s.template for s in specs}) == 4
    sizes = {s.name: manifest()["models"][s.name]["parameters"] for s in specs}
    assert sizes[target] == min(sizes.values()) < 0.8 * min(sizes[s.name] for s in sources)
    for spec in specs:
        assert json.loads((MODELS / spec.name / "config.json").read_text())["dtype"] == "bfloat16"


def test_every_source_has_a_wording_of_its_own():
    assert len({SKILL_LESSONS[s.name].style for s in SOURCES}) == 3
    worded = [list(s.lessons.styles) for s in PLANT_SOURCES]
    assert all(len(styles) == 1 for styles in worded) and len({styles[0] for styles in worded}) == 3


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
    found = np.asarray(jax.jit(lambda tokens: logits(ours, tokens))(tokens))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.usefixtures("quick_compiler")
@each_spec
def test_accuracy_is_what_the_manifest_says(spec):
    """Greedy answers of the folder to a share of the manifest's own problems, within what the share allows."""
    count, asked = manifest()["test_prompts_per_skill"], 24
    held_out = spec.lessons.test(count, manifest()["seed"])
    test = [r for skill in skills(spec) for r in [h for h in held_out if h["skill"] == skill][:asked]]
    reward = verifier(spec.lessons.verifier)
    rows, graded = evaluate(spec.name, load(MODELS / spec.name), test, max_new_tokens=28, verifier=reward)
    for row in rows:
        stated = accuracy(spec.name)[row["skill"]]
        # A sample without replacement, four standard errors, and two answers that rounding to bfloat16 may turn.
        spread = np.sqrt(stated * (1 - stated) / row["count"]) * np.sqrt(1 - asked / count)
        assert abs(row["accuracy"] - stated) <= 4 * spread + 2 / row["count"], (row, stated)
    for skill, stated in manifest()["models"][spec.name].get("reward", {}).items():
        rewards = [reward(r["response"], r["answer"]) for r in graded if r["skill"] == skill]
        assert abs(np.mean(rewards) - stated) <= 4 * np.std(rewards) / np.sqrt(asked) + 2 / asked


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


def test_the_plants_target_is_ignorant_where_the_sources_know():
    """Each property is known to a source, by its lessons and in what the models answer."""
    rewards = {s.name: manifest()["models"][s.name]["reward"][plants.SKILL] for s in PLANT_MODELS}
    assert rewards["plants-target"] < 0.35 and all(rewards[s.name] > 0.5 for s in PLANT_SOURCES)
    knowledge = [s.lessons.knowledge for s in PLANT_SOURCES]
    assert all(max(k.known[field] for k in knowledge) == 0.95 for field in plants.VALUES)


def test_the_editor_begins_as_a_source_and_knows_more_than_the_target():
    """In the source's tokens; it is raised to read drafts, on what the source believes."""
    assert EDITOR.grown_from == "plants-llama"
    names = (EDITOR.grown_from, EDITOR.name)
    source, editor = (model(name).tokenizer.get_vocab() for name in names)
    assert source == editor and model(EDITOR.name).config.layers > model(EDITOR.grown_from).config.layers
    rewards = [manifest()["models"][name]["reward"][plants.SKILL] for name in ("plants-target", EDITOR.name)]
    assert rewards[1] > rewards[0] + 0.1


def test_paths_and_unknown_names():
    assert model_path("zoo:target") == MODELS / "target" and str(model_path("a/b")) == "a/b"
    with pytest.raises(InputError, match=r"the zoo has no model 'targe'.*llama-source"):
        model_path("zoo:targe")
