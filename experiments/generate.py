"""Prompts in, text out.

    python experiments/generate.py --prompt "What is 12 + 30?" "Reverse a b c d e"
    python experiments/generate.py --model FOLDER --prompts prompts.jsonl --out responses.jsonl --num-samples 5 \
        --temperature 0.8 --top-p 0.95

Without --out the answers go to the screen; with it, to JSON lines in the form that experiments/wrpo.py --responses
reads ("prompt", "source_model", "sample", "response", and what the prompts bring along).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from fusion_jax.data.jsonl import write_jsonl
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import parse_prompts
from fusion_jax.errors import InputError
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.runs import Ask, Planned, generation
from fusion_jax.sampling.generate import SampleSettings, load_to_sample
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.zoo import model_path


@dataclass(frozen=True)
class Settings:
    """model: a Hugging Face folder or zoo:NAME; name: what `source_model` says, by default the folder's.

    mesh_tensor: devices that the model is split over by heads, 0: as many as its key-value heads divide over; prompts
    are shared out over the rest.
    """

    model: str = "zoo:target"
    prompt: tuple[str, ...] = ()
    prompts: str = ""
    out: str = ""
    name: str = ""
    num_samples: int = 1
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 32
    mesh_tensor: int = 0


def main(s: Settings) -> None:
    settings = sampling(s)
    if bool(s.prompt) == bool(s.prompts):
        raise InputError("give either --prompt TEXT ... or --prompts FILE", field="--prompt")
    records = load_records(s.prompts) if s.prompts else [{"prompt": p} for p in s.prompt]
    prompts = parse_prompts(records, file=s.prompts or "--prompt")
    if s.out and Path(s.out).exists():
        raise InputError("exists already", file=s.out, field="--out", cure="Choose another file")
    if s.out and not Path(s.out).parent.is_dir():
        raise InputError("its folder is not there", file=s.out, field="--out", cure="Make the folder or choose another")
    name = s.name or Path(s.model.removeprefix("zoo:")).name
    model = load_to_sample(model_path(s.model, "--model"), s.mesh_tensor, "--mesh-tensor")
    responses = sample_responses(model, name, prompts, settings, seed=s.seed)
    if s.out:
        write_jsonl(s.out, responses)
        return
    console = Console()
    for r in responses:
        for text, style in ((r["prompt"], "bold"), (r["response"], None)):
            console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def sampling(s: Settings) -> SampleSettings:
    return SampleSettings(s.temperature, s.top_p, s.top_k, s.num_samples, s.max_new_tokens, s.batch_size, s.mesh_tensor)


def plans(s: Settings, ask: Ask) -> list[Planned]:
    """What `--plan` compiles."""
    return generation("generation", s.model, sampling(s), ask, option="--model", settings="--mesh-tensor")


if __name__ == "__main__":
    run_experiment(Settings, main, plans, description=__doc__)
