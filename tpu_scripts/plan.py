"""Plan programs of a model for TPU slices, without a TPU: one row a program and slice.

    python tpu_scripts/plan.py --slices v5e-16 v5p-64                                    # the WRPO step of Llama-3-8B
    python tpu_scripts/plan.py --slices v5e-16 --programs sft dpo wrpo fusion --remats full dots
    python tpu_scripts/plan.py --slices v5p-32 v6e-16 --programs teacher --model llama3-70b --rows-a-chip 1
    python tpu_scripts/plan.py --slices v5e-8 --programs prefill decode --mesh-tensors 8 --batch-size 32

Needs the TPU compiler: pip install "jax[tpu]==0.10.2". A row takes 10 to 20 s on 2 cores; --full True waits for whole
compiles (minutes each). Experiments plan what they would run by --plan SLICE.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from rich.console import Console

from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.merge.methods import MethodName
from fusion_jax.models.decoder import Kernel
from fusion_jax.models.int8 import Weights
from fusion_jax.ops.remat import Remat
from fusion_jax.options import Called, ModelPath
from fusion_jax.plan.compile import check_compiler
from fusion_jax.plan.models import config_named
from fusion_jax.plan.programs import (
    OBJECTIVES,
    Decode,
    MergeTensor,
    Prefill,
    Program,
    ScoreStep,
    TeacherStep,
    TrainStep,
)
from fusion_jax.plan.report import LEGEND, line, plan_all
from fusion_jax.plan.requests import Request
from fusion_jax.plan.runs import Planned
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_script
from fusion_jax.slices import slice_of

Name = Literal["sft", "dpo", "wrpo", "fusion", "score", "teacher", "prefill", "decode", "merge"]


@dataclass(frozen=True)
class Settings:
    """Slices, programs and their sizes; every combination of slices, programs, remats, references and mesh_tensors is a
    row."""

    slices: Annotated[tuple[str, ...], Called("SLICE")] = ("v5p-64",)
    """Slices by their cloud names."""
    programs: tuple[Name, ...] = ("wrpo",)
    """Programs to plan."""
    model: ModelPath = "llama3-8b"
    """A known model's name, or a folder with a config.json."""
    rows_a_chip: int = 0
    """Token rows on a chip at once; 0: two for sft, dpo and fusion, three (one quadruple) for wrpo, one else."""
    tokens: int = 2048
    """Tokens of a row."""
    prompt: int = 0
    """Tokens of a row that are the prompt that its example's rows share."""
    micro_batches: int = 1
    """Parts in which a batch is computed."""
    references: tuple[Literal["stored", "in-step"], ...] = ("stored",)
    """Log-probs of the reference: stored, or computed in the step."""
    remats: tuple[Remat, ...] = ("full",)
    """What the backward pass keeps of a layer."""
    mesh_tensors: tuple[int, ...] = (1,)
    """Chips over which heads and feed-forward columns are split."""
    attention: Kernel = "splash"
    """Attention kernel."""
    k: int = 10
    """Entries that are kept of a teacher's distribution."""
    batch_size: int = 32
    """Prompts of prefill and decode, over all chips."""
    new_tokens: int = 1024
    """Tokens grown behind each prompt."""
    weights: Weights = "stored"
    """How score, teacher, prefill and decode hold the layers' matrices: bfloat16 as stored, or int8."""
    method: MethodName = "sce"
    """Method of a merge."""
    models: int = 4
    """Models of a merge."""
    full: bool = False
    """Wait for whole compiles, whose cycles refine the times (minutes each)."""

    def __post_init__(self) -> None:
        bounded(self, "tokens", "micro_batches", "k", "batch_size", "new_tokens", "models", least=1)
        bounded(self, "rows_a_chip", "prompt", least=0)
        for name in ("slices", "programs", "references", "remats", "mesh_tensors"):
            if not getattr(self, name):
                raise InputError("is empty", field=name, cure="Give one or more")
        if min(self.mesh_tensors, default=1) < 1:
            raise InputError(f"{min(self.mesh_tensors)} is not positive", field="mesh_tensors", cure="Give 1 or more")


def main(s: Settings) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    planned, rows = programs(s), []
    check_compiler()
    for one, found in zip(planned, plan_all(planned, full=s.full)):
        if isinstance(found, InputError):
            rows.append({"program": one.title, "slice": one.request.slice, "fits": f"not planned: {found}"})
        else:
            rows.append(line(found))
        console.print(" | ".join(str(v) for v in rows[-1].values() if v), style="dim")
    names = max(rows, key=len)
    console.print(markdown_table([dict.fromkeys(names, "") | row for row in rows]) + "\n\n" + LEGEND)
    if all("not planned" in row["fits"] for row in rows):
        raise SystemExit(1)


def programs(s: Settings) -> list[Planned]:
    """Every combination of the settings; a mesh that does not fit its slice is refused when it is planned.

    Raises:
      InputError: an unknown model or slice.
    """
    values, out = config_named(s.model, "--model"), []
    for name, place, remat, reference, tensor in itertools.product(
        s.programs, s.slices, s.remats, s.references, s.mesh_tensors
    ):
        mesh = (-1, 1, tensor) if name in ("prefill", "decode") else (1, -1, tensor)
        program = program_of(s, name, max(slice_of(place).chips // tensor, 1), remat, reference)
        title = " ".join([name, *variants(s, remat, reference, tensor)])
        out.append(Planned(title, Request(place, values, program, mesh)))
    return out


def variants(s: Settings, remat: str, reference: str, tensor: int) -> list[str]:
    """What tells a row from the others of its program."""
    several = ((s.remats, f"remat {remat}"), (s.references, reference), (s.mesh_tensors, f"tensor {tensor}"))
    return [text for choices, text in several if len(choices) > 1]


def program_of(s: Settings, name: Name, ways: int, remat: Remat, reference: Literal["stored", "in-step"]) -> Program:
    """A program with its rows over `ways` groups of chips."""
    rows, tokens = s.rows_a_chip, s.tokens - s.prompt
    match name:
        case "sft" | "dpo" | "wrpo" | "fusion":
            groups = len(OBJECTIVES[name].slots)
            examples = max((rows or max(groups, 2)) // groups, 1) * ways
            step = TrainStep(
                name, examples, tokens, s.prompt, s.micro_batches, "none", remat, s.prompt > 0, s.k, s.attention
            )
            return replace(step, reference=reference) if OBJECTIVES[name].reference else step
        case "score":
            return ScoreStep((rows or 1) * ways, tokens, 1, s.prompt, attention=s.attention, weights=s.weights)
        case "teacher":
            return TeacherStep((rows or 1) * ways, s.tokens, s.k, s.attention, s.weights)
        case "prefill":
            return Prefill(s.batch_size, s.tokens, weights=s.weights)
        case "decode":
            return Decode(s.batch_size, s.tokens, s.new_tokens, weights=s.weights)
        case "merge":
            values = config_named(s.model, "--model")
            return MergeTensor(s.method, s.models, (values["vocab_size"], values["hidden_size"]))


if __name__ == "__main__":
    run_script(Settings, main, description=__doc__)
