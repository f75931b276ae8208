"""Prompts in, text out.

    python experiments/generate.py --prompt "What is 12 + 30?" "Reverse a b c d e"
    python experiments/generate.py --model FOLDER --prompts prompts.jsonl --out responses.jsonl --num-samples 5 \\
        --temperature 0.8 --top-p 0.95

Data: prompts, JSON lines with "prompt"; what else a record holds is passed on.

Without --out the answers go to the screen; with it, to JSON lines in the form that experiments/wrpo.py --responses
reads ("prompt", "source_model", "sample", "response").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fusion_jax.data.asked import parse_prompts
from fusion_jax.data.loaders import load_records
from fusion_jax.errors import InputError
from fusion_jax.jsonl import write_jsonl
from fusion_jax.models.folder import check_folder, tokenizer_of
from fusion_jax.models.int8 import Weights
from fusion_jax.options import File, FreeTexts, ModelPath
from fusion_jax.paths import as_path, check_bucket, is_remote
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Sampling
from fusion_jax.sampling.generate import SampleSettings, encoded_prompts, load_to_sample
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.settings import seeded
from fusion_jax.zoo import model_path


@dataclass(frozen=True)
class Settings:
    """A model, prompts, and how answers are sampled."""

    model: ModelPath = "zoo:target"
    """Model to ask: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    prompt: FreeTexts = ()
    """Prompts, each in quotes."""
    prompts: File = ""
    """A file of prompts: JSON lines with "prompt"."""
    out: File = ""
    """File for the answers, JSON lines; without, the screen."""
    name: str = ""
    """What "source_model" says in the file; without, the folder's name."""
    num_samples: int = 1
    """Answers to each prompt."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """Temperature of sampling; 0 always takes the most probable token."""
    top_p: float = 1.0
    """Share of the probability mass that is sampled from; 1: all."""
    top_k: int = 0
    """How many of the most probable tokens are sampled from; 0: all."""
    min_p: float = 0.0
    """Tokens less likely than this share of the most likely one are left out; 0: none."""
    repetition_penalty: float = 1.0
    """How much less likely tokens become that the prompt or the answer has already; 1: not at all."""
    stop_strings: FreeTexts = ()
    """Texts that end an answer, which is cut before them."""
    beams: int = 1
    """Hypotheses that a beam search keeps of each prompt, in place of sampling; 1: no search."""
    length_penalty: float = 1.0
    """Power of its length that a hypothesis's log-probability is divided by; 0: none."""
    early_stopping: bool = False
    """Whether a search ends with as many finished hypotheses as beams; else when no better one seems possible."""
    no_repeat_ngram: int = 0
    """Length of the n-grams of which a search writes none twice; 0: no limit."""
    seed: int = 0
    """Decides the samples, where the temperature is not 0."""
    batch_size: int = 32
    """Prompts at once, over all devices."""
    mesh_tensor: int = 0
    """Devices over which the model's heads are split; 0: as many as its key-value heads divide over."""
    chat: bool = True
    """Whether prompts go through the model's chat template; a base model has none, and continues them as they stand."""
    weights: Weights = "stored"
    """How the layers' matrices are held: as in the files (stored), or rounded to int8, half the bytes of bfloat16."""

    def __post_init__(self) -> None:
        seeded(self, "seed")
        sampling(self)  # has the ranges of the rest


def main(s: Settings) -> None:
    settings = sampling(s)
    if bool(s.prompt) == bool(s.prompts):
        raise InputError("give either --prompt TEXT ... or --prompts FILE", field="--prompt")
    records = load_records(s.prompts) if s.prompts else [{"prompt": p} for p in s.prompt]
    prompts = parse_prompts(records, file=s.prompts or "--prompt")
    out = as_path(s.out)
    check_bucket(s.out, "--out")
    if s.out and out.exists():
        raise InputError("exists already", file=s.out, field="--out", cure="Choose another file")
    if s.out and not is_remote(out) and not out.parent.is_dir():
        raise InputError("its folder is not there", file=s.out, field="--out", cure="Make the folder or choose another")
    name = s.name or Path(s.model.removeprefix("zoo:")).name
    folder = model_path(s.model, "--model")
    chat = s.chat and not check_folder(folder).encoder
    encoded_prompts(tokenizer_of(folder, "--model"), [prompts[0]["prompt"]], chat=chat)  # before the weights are read
    model = load_to_sample(folder, s.mesh_tensor, "--mesh-tensor", weights=s.weights)
    responses = sample_responses(model, name, prompts, settings, seed=s.seed, chat=s.chat)
    if s.out:
        write_jsonl(s.out, responses)
        return
    console = Console()
    for r in responses:
        for text, style in ((r["prompt"], "bold"), (r["response"], None)):
            console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def sampling(s: Settings) -> SampleSettings:
    return SampleSettings(
        temperature=s.temperature, top_p=s.top_p, top_k=s.top_k, min_p=s.min_p,
        repetition_penalty=s.repetition_penalty, stop_strings=s.stop_strings, num_samples=s.num_samples,
        beams=s.beams, length_penalty=s.length_penalty, early_stopping=s.early_stopping,
        no_repeat_ngram=s.no_repeat_ngram, max_new_tokens=s.max_new_tokens, batch_size=s.batch_size,
        mesh_tensor=s.mesh_tensor,
    )  # fmt: skip


def parts(s: Settings) -> list[Part]:
    """What the program computes."""
    return [Sampling("generation", s.model, sampling(s), "--mesh-tensor", "--model", weights=s.weights)]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, description=__doc__)
