"""What the golden traces do not vary: settings, chat templates, ends, and input that is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import fusion_jax as fj
from fusion_jax.cool.answers import answers
from fusion_jax.cool.choose import MOST_LOG, Opinion, combined, opinion
from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import read_prompts, sources_of
from fusion_jax.cool.together import _loops, write
from fusion_jax.cool.words import Words
from fusion_jax.errors import InputError
from fusion_jax.runs.together import as_record
from fusion_jax.zoo import model_path
from tests.programs import finished
from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")

PROMPTS = ["Reverse a b c", "Write each letter twice: d e f", "Sort: c a b"]
SHORT = CoolSettings(mode="cool", max_segments=8, max_new_tokens=16, segment_tokens=8, batch_size=3)


@pytest.fixture(scope="module")
def models() -> dict:
    return {name: fj.load(model_path(f"zoo:{name}")) for name in ("qwen-source", "gemma-source")}


@pytest.fixture(scope="module")
def sources(models):
    return sources_of(models)


def test_models_with_templates_of_their_own(models, sources):
    """Each reads the prompt in its own template; what they write is the same for all, with no special token in it."""
    read = [read_prompts(source, PROMPTS, chat=True) for source in sources]
    assert all(a.prompt != b.prompt and 0 < a.left <= len(a.prompt) for a, b in zip(*read, strict=True))
    found = answers(sources, PROMPTS, SHORT)
    assert fj.fuse_generate(models, PROMPTS, settings=SHORT) == [one.text for one in found]
    for one in found:
        assert one.together.text == "".join(
            step.offers[step.winner].text for step in one.together.steps
        ) and "<" not in one.text
        assert len(one.together.tokens) == 2 and one.together.stop in ("end", "max_segments")


def test_where_a_word_must_begin_and_how_many_make_a_segment(sources):
    closed = answers(sources, PROMPTS, dataclasses.replace(SHORT, closed=True))
    for one in closed:
        for step in one.together.steps[1:]:
            for offer in step.offers:
                assert not offer.text or not offer.text[0].isalnum()
    for one in answers(sources, PROMPTS, dataclasses.replace(SHORT, words_per_segment=2, segment_tokens=16)):
        whole = [s for s in one.together.steps if not any(p.end for p in s.proposals)]
        assert all(len(offer.text.split()) <= 3 for step in whole for offer in step.offers)
    (alone,) = answers(sources[:1], PROMPTS[:1], dataclasses.replace(SHORT, max_segments=32))
    assert alone.together.text.strip() == fj.generate(
        fj.load(model_path("zoo:qwen-source")), PROMPTS[:1], max_new_tokens=16
    )[0][0].strip()  # one model alone agrees with itself


def test_texts_that_end_an_answer(sources):
    plain = answers(sources, PROMPTS, SHORT)
    cut = answers(sources, PROMPTS, dataclasses.replace(SHORT, stop_strings=(" ",)))
    for whole, one in zip(plain, cut, strict=True):
        assert one.text == whole.text[: whole.text.find(" ")] if " " in whole.text else one.text == whole.text
        assert one.together.stop == ("stop_string" if " " in whole.text else whole.together.stop)
    assert _loops([" a", " b", " c"] * 4) and not _loops([" a", " b", " c"] * 3) and not _loops(["x"] * 11)
    assert _loops(["x", *[" a"] * 12])


def test_texts_that_a_tokenizer_cannot_hold(sources):
    """Said of each prompt, with the number of tokens that stand for something else."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "one": 1, "two": 2, "</s>": 3}, unk_token="<unk>")),
        unk_token="<unk>", eos_token="</s>",
    )  # fmt: skip
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    assert Words(tokenizer).keeps(["one two", "one three", "one  two"]) == [True, False, False]
    assert all(Words(source.words.tokenizer).keeps(PROMPTS) == [True] * 3 for source in sources)
    (one, *_) = answers(sources, PROMPTS, dataclasses.replace(SHORT, mode="cool_rerank"))
    lame = [dataclasses.replace(sources[0], words=Words(tokenizer)), sources[1]]
    told = as_record({"prompt": PROMPTS[0]}, one, lame)
    assert told["read_otherwise"] == ["qwen-source"] and told["together"]["unknown"] == dict.fromkeys(
        ("qwen-source", "gemma-source"), 0
    )


def test_opinions_in_numpy():
    """PPL by tokens, characters and bytes; the four ways to combine them; nothing infinite from a finite sum."""
    logprobs = np.asarray([-1.0, -2.0, -3.0], np.float32)
    of = {norm: opinion((1, 2, 3), logprobs, " aé", True, CoolSettings(norm=norm)) for norm in ("token", "char", "byte")}
    wanted = {"token": math.exp(6 / 3), "char": math.exp(6 / 4), "byte": math.exp(6 / 5)}
    assert {norm: one.perplexity for norm, one in of.items()} == pytest.approx(wanted)
    assert opinion((1,), np.asarray([-1e6], np.float32), "a", False, CoolSettings()).perplexity == math.exp(MOST_LOG)
    assert opinion((), np.zeros(0, np.float32), " ", False, CoolSettings()).perplexity is None
    some = [Opinion((1,), 0.0, value) for value in (2.0, 8.0, 4.0)]
    wanted = {"mean_ppl": 14 / 3, "mean_log_ppl": 4.0, "median_ppl": 4.0, "primary_ppl": 2.0}
    assert {way: combined(some, CoolSettings(combine=way)) for way in wanted} == pytest.approx(wanted)
    assert combined([Opinion((), 0.0, None)], CoolSettings()) == math.inf
    assert combined([*some, Opinion((), 0.0, None)], CoolSettings()) == pytest.approx(14 / 3)


def test_what_is_refused(models, sources):
    bert = dataclasses.replace(models["qwen-source"], tokenizer=None)
    many = ["x y " * 200]
    wide = dataclasses.replace(SHORT, context=10**6)
    for call, message in (
        (lambda: fj.fuse_generate({}, PROMPTS), "field 'models': no model is given"),
        (lambda: fj.fuse_generate([bert], PROMPTS), "model 1, field 'tokenizer': has no tokenizer"),
        (lambda: fj.fuse_generate(models, "Reverse a b"), "prompts"),
        (lambda: answers(sources, ["a", *many], SHORT), "record 2, field 'prompt': .* exceed the 256 that all models read"),
        (lambda: answers(sources, many, wide), "exceed the 256 that all models read"),
        (lambda: fj.fuse_generate(models, ["a"], max_new_tokens=512), "512 new ones exceed the 256 .* max_new_tokens"),
        (lambda: sources_of(models, [None]), "field 'meshes': has 1 entries for 2 models"),
        (lambda: CoolSettings(stop_strings="ab"), "stop_strings"),
        (lambda: CoolSettings(norm="tokens"), "field 'norm': 'tokens' is not one of its choices"),
        (lambda: fj.fuse_generate(["folder"], PROMPTS), "model 1, field 'models': is no model"),
        (lambda: CoolSettings(segment_tokens=0), "segment_tokens"),
        (lambda: CoolSettings(stop_strings=("",)), "field 'stop_strings': holds an empty text"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_nothing_is_lost_where_nobody_goes_on(sources, monkeypatch):
    """Models that offer nothing stall a text; the others go on."""
    from fusion_jax.cool import together

    real = together.proposals

    def mute(lanes, texts, s):
        found = real(lanes, texts, s)
        return [{row: one._replace(text="", end=False) if row == 0 else one for row, one in own.items()} for own in found]

    monkeypatch.setattr(together, "proposals", mute)
    read = [read_prompts(source, PROMPTS, chat=True) for source in sources]
    found = dict(write(sources, list(zip(*read, strict=True)), SHORT))
    assert found[0].stop == "stalled" and found[0].text == "" and found[1].text


def test_tokenizers_that_share_no_boundary(sources):
    """One that makes a whole text one piece ends no word anywhere; whole answers can still be ranked."""
    whole = dataclasses.replace(sources[1], words=Unbroken(sources[1].words.tokenizer))
    with pytest.raises(InputError, match=r"share no place in .one two three four. .* that of gemma-source has"):
        answers([sources[0], whole], PROMPTS, SHORT)
    assert len(answers([sources[0], whole], PROMPTS, dataclasses.replace(SHORT, mode="rerank"))) == 3


class Unbroken(Words):
    def starts(self, text: str) -> list[int]:
        return []


def test_special_tokens_are_not_written(sources):
    """Those with a name and those that are only marked as special; the ends may be."""
    for source in sources:
        marked = {n for n, token in source.words.tokenizer.added_tokens_decoder.items() if token.special}
        assert marked - set(source.ends) == {n for n in marked if source.forbidden[n]} and marked
        assert not source.forbidden[list(source.ends)].any() and source.end in source.ends


@pytest.mark.slow
def test_each_model_on_devices_of_its_own():
    script = Path(__file__).with_name("on_own_devices.py")
    assert all(json.loads(finished([str(script)], os.environ | virtual_devices(8))).values())
