"""The zoo's tokenizers and templates: repeatable training, nothing lost, prompts that stay prefixes."""

from __future__ import annotations

import json
from functools import cache

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fusion_jax.data.chat import generation_prompt, render, render_text, stop_token_ids
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import MODELS, plants
from fusion_jax.zoo.dialogues import DialogueLessons
from fusion_jax.zoo.specs import EVERY, PlantLessons, SkillLessons, ZooSpec
from fusion_jax.zoo.tasks import SKILLS, STYLES, in_style, mixture
from fusion_jax.zoo.tokenizers import MARKS, train_tokenizer

each_spec = pytest.mark.parametrize("spec", EVERY, ids=lambda s: s.name)
RECORDS = mixture(dict.fromkeys(SKILLS, 25), split="test", seed=8)
STYLE_NAMES = tuple(STYLES)
PLANTS = plants.prompts(60, split="test", seed=8)
DRAWN = plants.draw(60, split="test", seed=8)


def manifest_seed() -> int:
    return int(json.loads((MODELS / "manifest.json").read_text())["seed"])


def trained(spec: ZooSpec) -> PreTrainedTokenizerFast:
    return _trained(EVERY.index(spec))


@cache
def _trained(place: int) -> PreTrainedTokenizerFast:
    spec = EVERY[place]
    return train_tokenizer(spec.tokenizer, spec.template, spec.vocab_size, spec.lessons.corpus(manifest_seed()))


def shipped(spec: ZooSpec) -> PreTrainedTokenizerFast:
    return _shipped(spec.name)


@cache
def _shipped(name: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(MODELS / name)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def texts() -> list[str]:
    """Of both kinds of problems."""
    skilled = [in_style(r["answer"], STYLE_NAMES[i % len(STYLE_NAMES)]) for i, r in enumerate(RECORDS)]
    described = [r["wordings"][i % len(r["wordings"])] for i, r in enumerate(PLANTS)]
    return [f"{r['prompt']}\n{worded}" for r, worded in zip([*RECORDS, *PLANTS], [*skilled, *described])]


def answered(spec: ZooSpec) -> list[tuple[str, str]]:
    """Prompts and right answers in the words of a model."""
    if isinstance(spec.lessons, PlantLessons | DialogueLessons):
        styles = list(spec.lessons.styles if isinstance(spec.lessons, PlantLessons) else plants.STYLES)
        right = [{f: plants.truth(name, f) for f in plants.VALUES} for name, _ in DRAWN]
        return [(asked, plants.worded(true, s)) for (_, asked), true in zip(DRAWN, right) for s in styles]
    assert isinstance(spec.lessons, SkillLessons)
    styles = list(STYLES) if spec.lessons.style == "mixed" else [spec.lessons.style]
    return [(r["prompt"], in_style(r["answer"], style)) for r in RECORDS for style in styles]


@each_spec
def test_the_shipped_tokenizer_is_what_its_seed_gives(spec):
    """Pieces, merges and everything around them; of a Unigram, whose trainer breaks ties as it likes, the scores of
    rare pieces only nearly."""
    again = json.loads(trained(spec).backend_tokenizer.to_str())
    there = json.loads((MODELS / spec.name / "tokenizer.json").read_text())
    if spec.tokenizer == "unigram":
        pieces = dict(map(tuple, again["model"].pop("vocab")))
        assert dict(map(tuple, there["model"].pop("vocab"))) == pytest.approx(pieces, abs=0.02)
    assert again == there


@each_spec
def test_sizes_and_special_tokens(spec):
    tokenizer = shipped(spec)
    assert 150 <= len(tokenizer) <= spec.vocab_size
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == MARKS[spec.template][:3]
    for mark in MARKS[spec.template]:
        assert len(ids(tokenizer, mark)) == 1 and ids(tokenizer, f"a{mark}b")[1:-1] == ids(tokenizer, mark)


@each_spec
def test_nothing_is_lost_and_digits_stand_alone(spec):
    tokenizer = shipped(spec)
    for text in [*texts(), "".join(map(chr, range(32, 127))), "a  b", " a ", "x\n\ny", "12 345"]:
        assert tokenizer.decode(ids(tokenizer, text)) == text
    if spec.tokenizer != "unigram":
        text = "é 漢 🙂 \t"
        assert tokenizer.decode(ids(tokenizer, text)) == text
    assert all(sum(c.isdigit() for c in piece) < 2 or piece.startswith("<0x") for piece in tokenizer.get_vocab())


@each_spec
def test_loading_keeps_every_id(spec):
    """The project's loader reads tokenizer.json as it is, and cuts texts as the tokenizer in memory did."""
    raw = Tokenizer.from_file(str(MODELS / spec.name / "tokenizer.json"))
    for text in texts():
        assert ids(shipped(spec), text) == raw.encode(text, add_special_tokens=False).ids
        assert shipped(spec).tokenize(text) == trained(spec).tokenize(text)


@each_spec
def test_auto_tokenizer_of_transformers_agrees(spec):
    theirs = AutoTokenizer.from_pretrained(MODELS / spec.name)
    for text in texts():
        assert ids(theirs, text) == ids(shipped(spec), text) and theirs.decode(ids(theirs, text)) == text
    assert theirs.chat_template == shipped(spec).chat_template


@each_spec
@pytest.mark.parametrize("style", STYLES)
def test_the_prompt_is_a_prefix_in_characters_and_in_tokens(spec, style):
    tokenizer = shipped(spec)
    for record in RECORDS[::3]:
        messages, worded = [user(record["prompt"])], in_style(record["answer"], style)
        prompt, response = render(tokenizer, messages, worded)
        opening = generation_prompt(tokenizer, messages)
        assert opening.startswith(prompt) and (prompt + response).startswith(opening)
        joint = ids(tokenizer, prompt + response)
        for part in (prompt, opening):
            assert joint[: len(ids(tokenizer, part))] == ids(tokenizer, part)
        assert worded in response and record["prompt"] in prompt
        assert joint.count(tokenizer.bos_token_id) == int("bos_token" in tokenizer.chat_template)
        assert joint[-1] in stop_token_ids(tokenizer, {}) or joint[-2] in stop_token_ids(tokenizer, {})


@each_spec
def test_later_turns_do_not_change_earlier_ones(spec):
    tokenizer = shipped(spec)
    talk = [user("Reverse a b"), {"role": "assistant", "content": "b a"}, user("What is 4 + 3?")]
    rendered = [render_text(tokenizer, talk[:n], header=False) for n in (1, 2, 3)]
    assert rendered[2].startswith(rendered[1]) and rendered[1].startswith(rendered[0])
    prompt, response = render(tokenizer, talk, "7")
    assert prompt == rendered[2] and "7" in response


def test_the_turn_template_refuses_other_orders():
    spec = next(s for s in EVERY if s.template == "turns")
    with pytest.raises(InputError, match="roles must alternate"):
        render(shipped(spec), [user("a"), user("b")], "c")


@each_spec
def test_prompts_and_answers_are_short(spec):
    """A default run samples at most 28 new tokens and has minutes: prompts stay under 64, answers under 29."""
    tokenizer = shipped(spec)
    for asked, worded in answered(spec):
        opening = generation_prompt(tokenizer, [user(asked)])
        assert len(ids(tokenizer, opening)) <= 64
        prompt, response = render(tokenizer, [user(asked)], worded)
        assert len(ids(tokenizer, prompt + response)) - len(ids(tokenizer, opening)) <= 28
