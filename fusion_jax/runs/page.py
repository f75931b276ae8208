"""What every experiment begins with: the settings that all share, and its course from the command line to the end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fusion_jax.hosts.join import HostSettings, connect
from fusion_jax.options import File, Folder
from fusion_jax.plan.parts import Part, check_all
from fusion_jax.rewards.verifiers import VerifierName
from fusion_jax.runs.checks import check_options
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings, check_evaluation, evaluate_results
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.provenance import Ran
from fusion_jax.runs.seeds import Measures, add_results, over_seeds
from fusion_jax.settings import bounded, seeded, to_json
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.store.trackers import TrackerName, check_installed, tracking


@dataclass(frozen=True)
class RunSettings:
    """Where a run lies."""

    out: Folder = "runs/run"
    """Folder of the run: all stages, report.md and the model."""
    resume: bool = False
    """Continue the run that --out holds, if there is one: the same command with --resume can always be repeated."""
    hosts: HostSettings = HostSettings()
    track: TrackerName = "none"
    """Where metrics are shown besides metrics.jsonl, if it is installed: TensorBoard or Weights & Biases."""


@dataclass(frozen=True)
class SeededSettings(RunSettings):
    """Where a run lies, and its seeds."""

    seed: int = 42
    """Decides the zoo's problems and every random choice of the run."""
    seeds: int = 1
    """Whole runs, with seed, seed + 1, ...; report.md then has means with intervals."""

    def __post_init__(self) -> None:
        seeded(self, "seed")
        bounded(self, "seeds", least=1)


@dataclass(frozen=True)
class JudgedSettings(SeededSettings):
    """Where a run lies, its seeds, and the test prompts on which every model is judged."""

    test_prompts: File = ""
    """Held-out prompts with "answer", on which every model is judged."""
    test_per_skill: int = 60
    """The zoo's problems of each skill to be judged on."""
    accuracy: VerifierName = "answer"
    """Rule that judges test answers."""
    eval_new_tokens: int = 28
    """Longest test answer, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "test_per_skill", least=0)
        bounded(self, "eval_new_tokens", least=1)


S = TypeVar("S", bound=RunSettings)


def conduct(
    script: str,
    title: str,
    settings: S,
    presets: Mapping[str, S],
    method: Callable[[S, Desk], Measures | None],
    parts: Callable[[S], Sequence[Part]],
    *,
    check: Callable[[S], None] = lambda settings: None,
    unread: Collection[str] = (),
) -> None:
    """Connect the hosts, check the settings, open the run folder, carry out the method for each seed, end the run.

    Args:
      script: the experiment's file. title: of its report.
      method: (settings, desk) -> {model: {measure: value}}, for one seed; None where the method writes its results.
      parts: what the run computes, which has to fit the devices and the models.
      check: refuses settings that do not go together. Both are looked at before the folder is opened.
      unread: the fields of models that this run does not load.
    """
    connect(settings.hosts)
    check_options(settings, unread)
    check(settings)
    check_all(parts(settings))
    check_installed(settings.track)
    if isinstance(settings, EvaluatedSettings):
        check_evaluation(settings)
    ran = Ran(script, settings, presets)
    with (
        open_run(settings.out, settings, resume=settings.resume) as opened,
        tracking(settings.track, opened.path, to_json(settings), opened.log) as tracker,
    ):
        run = dataclasses.replace(opened, tracker=tracker)
        whole = Desk(run, title, ran)

        def carried_out(own: S, desk: Desk) -> Measures:
            found = method(own, desk) or {}
            return found | (evaluate_results(desk, own) if isinstance(own, EvaluatedSettings) else {})

        if isinstance(settings, SeededSettings):
            first, count = settings.seed, settings.seeds
            of_seed = functools.partial(dataclasses.replace, settings, seeds=1)

            def one(seed: int, folder: RunFolder) -> Measures:
                own = of_seed(seed=seed)
                return carried_out(own, Desk(folder, title, Ran(script, own, presets), whole))

            over_seeds(run, title, ran, first, count, one)
        else:
            add_results(run, carried_out(settings, whole))
        run.finish()
