"""Tasks, tokenizers and the shipped models of the zoo."""

from __future__ import annotations

import hashlib
import json

import pytest

from fusion_jax.data.chat import render
from fusion_jax.models.folder import load
from fusion_jax.rewards.verifiers import answer, graded
from fusion_jax.zoo import MODELS, model_path
from fusion_jax.zoo.specs import EVERY, PLANT_MODELS, SPECS
from fusion_jax.zoo.tasks import SKILLS, STYLES, in_style, is_test, mixture, prompts
from fusion_jax.zoo.tokenizers import TEMPLATES, train_tokenizer


@pytest.mark.parametrize("skill", SKILLS)
def test_train_and_test_share_no_problem_whatever_the_wording(skill):
    def problems(split, seed):
        """Prompts without their wording."""
        found = set()
        for record in prompts(skill, 60, split=split, seed=seed, repeat=True):
            shown = [
                record["prompt"].removeprefix(t.split("{x}")[0]).removesuffix(t.split("{x}")[1])
                for t in SKILLS[skill].templates
                if record["prompt"].startswith(t.split("{x}")[0]) and record["prompt"].endswith(t.split("{x}")[1])
            ]
            assert shown, record
            found.add(min(shown, key=len))
        return found

    train = set().union(*(problems("train", s) for s in range(20)))
    test = set().union(*(problems("test", s) for s in range(5)))
    assert len(test) > 40 and not train & test


def test_prompts_are_a_function_of_the_seed():
    shares = dict.fromkeys(SKILLS, 5)
    assert mixture(shares, split="train", seed=3) == mixture(shares, split="train", seed=3)
    assert mixture(shares, split="train", seed=3) != mixture(shares, split="train", seed=4)
    ids = [r["prompt_id"] for r in mixture(dict.fromkeys(SKILLS, 40), split="test", seed=3)]
    assert len(set(ids)) == len(ids) == 40 * len(SKILLS)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_read_by_the_verifiers(style):
    for record in mixture(dict.fromkeys(SKILLS, 5), split="train", seed=0):
        assert answer(in_style(record["answer"], style), record["answer"]) == 1.0
        wrong = in_style(record["answer"] + " z", style)
        assert answer(wrong, record["answer"]) == 0.0 and 0.0 < graded(wrong, record["answer"]) < 1.0


def test_addition_is_right():
    import re

    for record in prompts("add", 50, split="train", seed=0):
        a, b = map(int, re.findall(r"\d+", record["prompt"]))
        assert record["answer"] == str(a + b)
    assert {is_test("add", SKILLS["add"].draw(__import__("numpy").random.default_rng(i))) for i in range(50)} == {
        True,
        False,
    }


@pytest.mark.parametrize("spec", EVERY, ids=lambda s: s.name)
def test_shipped_models(spec):
    """Hashes of the manifest, the architecture of the spec, a tokenizer that loses nothing, a template that is safe."""
    folder = model_path(f"zoo:{spec.name}")
    manifest = json.loads((MODELS / "manifest.json").read_text())["models"][spec.name]
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    assert files == manifest["sha256"]
    model = load(folder)
    assert model.config == spec.config(len(model.tokenizer))
    text = "Which number is the largest: 18, 95, 44?"
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.tokenizer.decode(ids) == text
    prompt, response = render(model.tokenizer, [{"role": "user", "content": text}], "The answer is 95.")
    assert text in prompt and "The answer is 95." in response and "95." not in prompt


def test_the_shipped_folders_are_small():
    assert sum(p.stat().st_size for p in MODELS.rglob("*") if p.is_file()) < 20_000_000


def test_vocabularies_differ():
    vocabularies = [set(load(model_path(f"zoo:{s.name}")).tokenizer.get_vocab()) for s in (*SPECS, *PLANT_MODELS)]
    assert all(a != b for i, a in enumerate(vocabularies) for b in vocabularies[:i])
    assert len({s.template for s in EVERY}) == len(TEMPLATES) == 4
    assert train_tokenizer("unigram", "turns", 200, ["a b c", "d e f"]).tokenize("a1") is not None
