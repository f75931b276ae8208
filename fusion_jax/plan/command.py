"""`--plan SLICE` of the experiments: instead of running, say what the run would need on a TPU slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from fusion_jax.errors import InputError
from fusion_jax.options import Called
from fusion_jax.plan.compile import check_compiler
from fusion_jax.plan.parts import Part, plan_of
from fusion_jax.plan.report import LEGEND, page, plan_all
from fusion_jax.plan.runs import Ask, Planned
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment
from fusion_jax.slices import slice_of

S = TypeVar("S")


@dataclass(frozen=True)
class PlanOptions:
    """Instead of running, say whether the run fits on a TPU slice and how long it would take. Needs the TPU compiler
    (pip install "jax[tpu]==0.10.2"), no TPU, no weights: models may be folders with a config.json alone, or names like
    llama3-8b."""

    basic: ClassVar = ("plan",)

    plan: Annotated[str, Called("SLICE")] = ""
    """Instead of running, say whether this fits on a slice (v5e-16, v5p-64, v6e-8, ...) and how long it would take."""
    plan_rows: int = 0
    """Records of the whole run, for its hours; with --plan."""
    plan_prompt: int = 0
    """Tokens of each prompt; with --plan."""
    plan_full: bool = False
    """Wait for the whole compile, whose cycles refine the times (minutes); with --plan."""

    def __post_init__(self) -> None:
        bounded(self, "plan_rows", "plan_prompt", least=0)


def run(
    settings: type[S],
    main: Callable[[S], None],
    parts: Callable[[S], Sequence[Part]],
    *,
    presets: Mapping[str, S] | None = None,
    description: str | None,
    args: Sequence[str] | None = None,
) -> None:
    """`settings.run` with `--plan`: then the programs of the run's parts are planned, and no other thing is done."""

    def chosen(values: S, options: PlanOptions, preset: str) -> None:
        if not options.plan and options != PlanOptions():
            raise InputError("is missing", field="--plan", cure="Name a slice, for instance --plan v5e-16")
        if not options.plan:
            main(values)
            return
        ask = Ask(slice_of(options.plan).name, options.plan_rows, options.plan_prompt, options.plan_full, preset)
        check_compiler()
        show(plan_of(parts(values), ask), ask)

    run_experiment(
        settings, chosen, presets=presets, description=description, args=args, beside=PlanOptions()
    )  # fmt: skip


def show(planned: Sequence[Planned], ask: Ask) -> None:
    """Each program's page on the screen, in order.

    Raises:
      SystemExit: code 1, after all pages: a program could not be planned.
    """
    from rich.console import Console

    console: Any = Console(soft_wrap=True, highlight=False, markup=False)
    failed = 0
    for one, found in zip(planned, plan_all(planned, full=ask.full)):
        if isinstance(found, InputError):
            failed += 1
            console.print(f"## {one.title} on {ask.slice}\n\nnot planned: {found}\n")
        else:
            console.print(page(found) + "\n")
    where = slice_of(ask.slice)
    options = " ".join(f"--{name}={value}" for name, value in where.chip.compiler_options.items())
    console.print(f"{LEGEND}\nCompiler options, which training steps on TPU take too: {options}")
    if failed:
        raise SystemExit(1)
