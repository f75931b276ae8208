"""Log-probabilities of continuations of texts, beside the plain forward pass and beside PyTorch."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
import torch
import transformers

from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, logits, save
from fusion_jax.models.parameters import init_params
from fusion_jax.sampling import continuations as module
from fusion_jax.sampling.continuations import Choices, continuation_scores, encoded_choices, scores_of
from fusion_jax.sampling.generate import encoded_prompts
from fusion_jax.sampling.prompts import ready
from tests.small import small_model

PROMPTS = ["What is 12 + 30?", "Sort d a c: ", "", "Reverse a b c d e f g\n\n", "It"]
CONTINUATIONS = [
    [" 42", " 41 or so", "\nAnswer: 42"], ["a c d", "d"], ["What is", "a"], [], ["s", " is", " is the sum of 3 and 4"],
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(initializer_range=0.3)


def harness_pair(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of a context and of what follows it, as lm-eval's `_encode_pair` makes them without special tokens."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation, context = context[-spaces:] + continuation, context[:-spaces]
    if not context:
        return [tokenizer.bos_token_id], tokenizer.encode(continuation, add_special_tokens=False)
    both, alone = (tokenizer.encode(text, add_special_tokens=False) for text in (context + continuation, context))
    return alone, both[len(alone) :]


def pairs():
    for number, (prompt, some) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
        for place, text in enumerate(some):
            yield number, place, prompt, text


def test_pytorch_gives_the_same(model, tmp_path):
    """On the same weights, tokens put together as lm-eval's harness does."""
    save(model, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    found = continuation_scores(model, PROMPTS, CONTINUATIONS, batch_size=2)
    assert [len(row) for row in found] == [len(row) for row in CONTINUATIONS]
    for number, place, prompt, text in pairs():
        context, ids = harness_pair(tokenizer, prompt, text)
        with torch.no_grad():
            out = theirs(torch.tensor([[*context, *ids]])).logits[0].log_softmax(-1).numpy()
        behind = out[len(context) - 1 : -1]
        one = found[number][place]
        assert one.ids == tuple(ids) and one.tokens == len(ids)
        np.testing.assert_allclose(one.logprobs, behind[np.arange(len(ids)), ids], atol=1e-5)
        assert one.logprob == pytest.approx(behind[np.arange(len(ids)), ids].sum(), abs=1e-5)
        assert one.greedy == (behind.argmax(-1) == ids).all()
        best = int(behind[0].argmax())
    made = ready(model.params, model.config, np.float32)
    ((number, (first, second)),) = scores_of(made, [Choices(context, [[best], [best, best]])], 2)
    assert number == 0 and first.greedy and second.logprobs[0] == pytest.approx(first.logprob, abs=1e-5)


@pytest.mark.usefixtures("quick_compiler")
class TestWithoutReference:
    """Compared with this package's own forward pass, or with itself."""

    def test_white_space_at_the_end_of_a_prompt_belongs_to_what_follows(self, model):
        moved, there = continuation_scores(model, ["Sort d a c: ", "Sort d a c:"], [["a"], [" a"]], batch_size=2)
        assert moved[0].ids == there[0].ids and moved[0].logprobs.tolist() == there[0].logprobs.tolist()
        asked = encoded_choices(model.tokenizer, model.config, ["x \n"], [["y"]])[0]
        assert model.tokenizer.decode(asked.continuations[0]) == " \ny"

    def test_chats_are_the_beginnings_of_answers(self, model):
        answers = [["42", "The answer"], ["a"]]
        found = continuation_scores(model, PROMPTS[:2], answers, chat=True, batch_size=2)
        prompts = encoded_prompts(model.tokenizer, PROMPTS[:2])
        for prompt, some, texts in zip(prompts, found, answers, strict=True):
            for one, text in zip(some, texts, strict=True):
                assert model.tokenizer.decode(one.ids) == text
                whole = np.asarray([[*prompt, *one.ids]])
                behind = np.asarray(jax.nn.log_softmax(logits(model, whole)[0]))[len(prompt) - 1 : -1]
                np.testing.assert_allclose(one.logprobs, behind[np.arange(one.tokens), list(one.ids)], atol=1e-5)

    def test_special_tokens_that_a_tokenizer_sets_before_texts(self, model):
        tokenizer = model.tokenizer
        plain = encoded_choices(tokenizer, model.config, ["a b", ""], [[" c"], ["d"]])

        class WithBos:
            """Sets BOS before a text and EOS behind it."""

            def __getattr__(self, name):
                return getattr(tokenizer, name)

            def __call__(self, text, add_special_tokens=True):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                ends = tokenizer.bos_token_id, tokenizer.eos_token_id
                return {"input_ids": [ends[0], *ids, ends[1]] if add_special_tokens else ids}

        first, second = encoded_choices(WithBos(), model.config, ["a b", ""], [[" c"], ["d"]])
        assert first.prompt == [tokenizer.bos_token_id, *plain[0].prompt]
        assert first.continuations == plain[0].continuations
        assert second == plain[1] and second.prompt == [tokenizer.bos_token_id]

    def test_few_tokens_at_once_change_nothing(self, model, monkeypatch):
        many = [[f" {number} and {number + 1}" for number in range(9)], *CONTINUATIONS[1:]]
        seen: list[int] = []
        whole = continuation_scores(model, PROMPTS, many, batch_size=2, progress=seen.append)
        monkeypatch.setattr(module, "PACKED_TOKENS", 1)
        parts = continuation_scores(model, PROMPTS, many, batch_size=3)
        assert seen == [1, 2, 3, 4, 5]
        every = zip(itertools.chain(*whole), itertools.chain(*parts), strict=True)
        for one, other in every:
            assert one.ids == other.ids and one.greedy == other.greedy
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)

    def test_an_encoder_reads_the_prompt(self, model):
        tokenizer = model.tokenizer
        config = config_from_hf({
            "model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
            "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
            "decoder_start_token_id": 0,
        })  # fmt: skip
        other = Model(config, init_params(config, jax.random.key(0)), tokenizer)
        found = continuation_scores(other, ["What is 12 + 30?", "a"], [["42", "a b"], ["c"]], batch_size=2)
        ids = tokenizer("What is 12 + 30?")["input_ids"]
        own = tokenizer("a b", add_special_tokens=False)["input_ids"]
        plain = logits(other, np.asarray([ids]), np.asarray([len(ids)]), decoder_tokens=np.asarray([[0, *own]]))[0]
        expected = np.asarray(jax.nn.log_softmax(plain))[np.arange(len(own)), own]
        assert found[0][1].ids == tuple(own)
        np.testing.assert_allclose(found[0][1].logprobs, expected, atol=1e-5)

    @pytest.mark.parametrize(
        "prompts, continuations, message",
        [
            ("a", [["b"]], "field 'prompts': is the text 'a'"),
            (["a"], ["b"], "field 'continuations': is the text 'b'"),
            (["a"], [["b"], []], "field 'continuations': has 2 lists for 1 prompts"),
            (["a", "a"], [["b"], ["b", ""]], "record 2, field 'continuations': holds a text that has no token"),
            (["a b " * 60], [["c", "d " * 40]], "record 1, field 'prompt': .* exceed the model's 128 positions"),
            (["a" * 10**6], [["c"]], "has 1000000 characters, more than the model's 128 positions hold"),
        ],
    )
    def test_what_is_refused(self, model, prompts, continuations, message):
        with pytest.raises(InputError, match=message):
            continuation_scores(model, prompts, continuations)

    def test_models_that_write_no_text(self, model):
        with pytest.raises(InputError, match="the model has no tokenizer"):
            continuation_scores(Model(model.config, model.params), ["a"], [["b"]])
        broken = Model(model.config, jax.tree.map(lambda x: x.at[0].set(np.nan), model.params), model.tokenizer)
        with pytest.raises(InputError, match="record 1: the model's logits are not finite"):
            continuation_scores(broken, ["a"], [["b"]], batch_size=2)
