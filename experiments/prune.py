"""BlockPruner (arXiv 2406.10594): remove the attention and feed-forward blocks that a text needs least.

    python experiments/prune.py                                            # a miniature of 12 layers, a CPU, minutes
    python experiments/prune.py --preset paper --model FOLDER --calibration hf:tatsu-lab/alpaca --documents 256 \\
        --held-out-texts wikitext.jsonl --ratio 0.22 --out runs/a
    python experiments/prune.py --preset paper --model FOLDER --removed runs/a/removed.json --ratio 0.1 \\
        --held-out-texts wikitext.jsonl --out runs/b                       # a search used again

Step by step the block goes without which the calibration text has the lowest perplexity; nothing is trained, unless
--recovery asks for it. One search serves every smaller share. Beside it, on the same text: other orders (--compared,
which `tiny` has all of and `paper` none).

Data: texts, JSON lines with "text", plain lines or hf:NAME; test prompts {"prompt", "answer"}.

Hardware and time: `tiny` 2 CPU cores, 2 to 3 minutes; `paper` is for a TPU slice (not timed; --plan v5e-8 estimates).
Result: report.md with perplexity and accuracy against the share of the parameters, the order on the grid of layers and
what is saved; removed.json, the official program's file; model/, a folder of the model's own architecture: layers that
lost both blocks are gone, of others the output of the lost block is zero. Published (Llama-2-7B, WikiText-2): 5.47
whole, 11.51 without 22.0 % of the parameters; whole layers by influence 18.45 without 21.0 %. docs/prune.md has more.

Stages: calibration.jsonl, search/STEP.jsonl, removed.json, curves/ORDER.jsonl, answers/, recovery/, model/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Searching, Training
from fusion_jax.prune.export import served
from fusion_jax.prune.scoring import perplexity, score
from fusion_jax.prune.search import removed_by, to_official
from fusion_jax.runs import pruned, pruning
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import conduct
from fusion_jax.runs.recovering import RecoverySettings, recovered
from fusion_jax.runs.seeds import Measures
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(RecoverySettings):
    """A model, the text that judges its blocks, how many go, and whether it learns again."""

    basic: ClassVar = (
        "model", "calibration", "documents", "held_out_texts", "test_prompts", "out", "resume", "seed", "seeds",
        "blocks", "ratio", "unit", "form", "removed", "compared", "recovery",
    )  # fmt: skip

    out: Folder = "runs/prune"


LARGE = OptimizerSettings(learning_rate=2e-4, schedule="linear")  # of the paper's appendix H, with adapters
PRESETS = {
    "tiny": Settings(
        shares=(0.125, 0.25, 0.375),
        problems=15,
        train=TrainSettings(
            optimizer=OptimizerSettings(learning_rate=5e-4), batch_size=16, micro_batches=1, log_every=5,
            checkpoint_every=100, remat="none",
        ),
        test_per_skill=20,
        rows=105,
        states=1,
    ),
    "paper": Settings(
        rows=1, states=16, eval_new_tokens=1024, compared=(),
        train=TrainSettings(optimizer=LARGE, batch_size=4, micro_batches=1, lora_rank=32, lora_alpha=10),
    ),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "Pruning blocks", s, PRESETS, prune, parts, check=check)


def prune(s: Settings, desk: Desk) -> Measures:
    """Search (section 7 of the specification), compare, recover, export."""
    judges = pruning.given_texts(s, desk) if s.own_texts else None
    model = desk.load(s.model, s.train)
    judges = judges or pruning.own_answers(s, desk, model)
    scorer = pruning.scorer_of(s, model, judges.calibration)
    steps = pruning.searched(s, desk, model.config, scorer)
    removed = removed_by(steps)
    desk.run.on_first(lambda: write_json(desk.run.file("removed.json"), to_official(steps)))
    curves = pruning.compared(s, desk, model, judges, scorer, steps)

    measures = pruned.measures_of(model.config, steps, curves, s.shares)
    last, gone = model, removed
    if s.recovery != "none":
        last, gone = recovered(s, desk, model, removed), frozenset()
        small = served(last, ())
        desk.judge(s.recovery, small, judges.tests)
        measures |= desk.measures()
        if judges.unseen is not None:
            losses = score(small.params, small.config, judges.unseen, (), (), s.how)
            measures[s.recovery] = {"perplexity": perplexity(losses.base)} | measures.get(s.recovery, {})
    desk.export(served(last, gone, s.form))
    times = pruned.decoding_times(s.decode_on, model, removed)
    pruned.report(desk, model.config, steps, curves, measures, min(s.length, model.config.max_positions), times)
    return measures


def check(s: Settings) -> None:
    """Refuse before the search what it could not reach, and what would do nothing."""
    pruning.check(s, PRESETS)
    if s.recovery == "none":
        pruning.refuse_idle(
            s, PRESETS, ("recovery_texts", "recovery_problems", "k", "fusion"), "a run without --recovery"
        )
        if pruning.reading(s.train) not in [pruning.reading(preset.train) for preset in PRESETS.values()]:
            cure = "Leave the settings of --train out, but for mesh, dtype and attention"
            raise InputError("trains nothing in a run without --recovery", field="--train", cure=cure)
    elif s.recovery == "sft":
        pruning.refuse_idle(s, PRESETS, ("k", "fusion"), "--recovery sft")
    if s.recovery_texts:
        pruning.refuse_idle(s, PRESETS, ("recovery_problems",), "--recovery-texts, which take their place")


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    search = Searching(s.model, s.train, s.rows, s.states, s.length, partial(pruning.removals, s))
    found: list[Part] = [] if s.removed else [search]
    if s.recovery != "none":
        found.append(Training("recovery", s.model, s.objective, s.train, s.length, named="--model", length="--length"))
    return found


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
