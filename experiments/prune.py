"""BlockPruner: remove the attention and feed-forward blocks that a text needs least (arXiv 2406.10594).

    python experiments/prune.py                                            # a miniature, a CPU, a minute
    python experiments/prune.py --model FOLDER --calibration texts.jsonl --held-out-texts more.jsonl --ratio 0.2 \\
        --preset paper --out runs/pruned

Step by step the block goes without which the calibration text has the lowest perplexity; nothing is trained. One search
to the largest number of blocks serves every smaller one; killed, it goes on after its last whole step. Beside it stand,
without a search or by whole layers: the order of the whole model's perplexity (one shot), greedy removal of layers,
influence of layers (ShortGPT), angles of layers, relative magnitude of blocks, chance.

Hardware and time: `tiny` 2 CPU cores, a minute; `paper` is for a TPU slice (not timed yet).
Result: report.md with perplexity against share of parameters, removed.json (the official program's file of the search),
model/, a folder of the model's own architecture: layers that lost both blocks are gone, in others the output of the
lost block is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.loaders import load_texts
from fusion_jax.data.records import parse_rows
from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Folder, ModelPath
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.prune.blocks import Unit, candidates, ratio
from fusion_jax.prune.calibration import calibration_rows, chat_text
from fusion_jax.prune.export import served
from fusion_jax.prune.orders import Order, baselines, curves
from fusion_jax.prune.scoring import How, Text, score
from fusion_jax.prune.search import Blocks, Scorer, Step, from_record, removed_by, search, to_official, to_record
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import SeededSettings, conduct
from fusion_jax.runs.pruned import report
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import generate
from fusion_jax.settings import bounded
from fusion_jax.train.settings import TrainSettings, compute_to_read
from fusion_jax.zoo.problems import problems


@dataclass(frozen=True)
class Settings(SeededSettings):
    """A model, the text that judges its blocks, and how many go."""

    basic: ClassVar = (
        "model", "calibration", "held_out_texts", "out", "resume", "blocks", "ratio", "unit", "length", "baselines",
    )  # fmt: skip

    out: Folder = "runs/prune"
    model: ModelPath = "zoo:llama-source"
    """Model to prune: a Hugging Face folder, or zoo:NAME."""
    calibration: File = ""
    """Texts that judge the blocks (JSON lines with "text", or plain lines); without, the model's own
    answers to the zoo's problems."""
    held_out_texts: File = ""
    """Texts on which perplexities are compared; beside own texts nothing is compared without."""
    problems: int = 40
    """The zoo's problems of each skill."""
    blocks: int = 0
    """Blocks that the search removes; 0: about a third of all."""
    ratio: float = 0.0
    """Share of the parameters that the exported model lacks, at least; 0: all blocks of the search go."""
    unit: Unit = "mix"
    """What may go: blocks of both kinds (mix), attention alone (mha), feed-forwards alone (mlp), whole layers."""
    length: int = 2048
    """Tokens of a row; the texts are joined and cut into rows."""
    baselines: bool = True
    """Whether orders without a search, or by whole layers, are compared."""
    rows: int = 8
    """Rows of the text at once."""
    states: int = 4
    """States of the search at once, of so many rows each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "blocks", least=0)
        bounded(self, "length", least=2)
        bounded(self, "problems", least=1)
        bounded(self, "ratio", least=0, below=1)
        bounded(self, "rows", "states", least=1)


PRESETS = {"tiny": Settings(length=64), "paper": Settings(rows=1, states=16)}


def main(s: Settings) -> None:
    conduct(__file__, "Pruning blocks", s, PRESETS, prune, lambda s: [])


def prune(s: Settings, desk: Desk) -> Measures:
    """Search, cut to the share that is asked for, export, and compare on held-out text."""
    model = desk.load(s.model, TrainSettings())
    text, unseen = texts(s, model)
    compute = compute_to_read(TrainSettings())
    how = How(compute.mesh, compute.dtype, compute.kernel, rows=s.rows, states=s.states)
    scorer = partial(score, model.params, model.config, text, how=how)
    steps = searched(s, desk, model, scorer)
    removed = cut(s, model, steps)
    desk.run.on_first(lambda: write_json(desk.run.file("removed.json"), to_official(steps)))
    desk.export(served(model, removed), made_from=[])
    found = desk.records("curves.jsonl", lambda: compared(s, model, text, unseen, scorer, steps, how))
    return report(desk, model.config, steps, removed, found)


def compared(
    s: Settings, model: Model, text: Text, unseen: Text | None, scorer: Scorer, steps: Sequence[Step], how: How
) -> list[Record]:
    """Held-out perplexity against the share that is removed, by the search and by other orders."""
    if unseen is None:
        return []
    orders: dict[str, Order] = {"search": [step.chosen for step in steps]}
    if s.baselines:
        orders |= baselines(model, text, scorer, how, s.seed)
    return list(curves(model, unseen, orders, how, ratio(model.config, removed_by(steps))))


def texts(s: Settings, model: Model) -> tuple[Text, Text | None]:
    """What judges the blocks, and other text to compare on."""
    if not s.calibration:
        return own_chats(s, model, "train"), own_chats(s, model, "test")
    ignored = model.hf_config.get("pad_token_id") or None  # as the official program: no id, or 0, ignores nothing
    length = min(s.length, model.config.max_positions)
    files = [s.calibration, *([s.held_out_texts] if s.held_out_texts else [])]
    own, *held = (Text(calibration_rows(load_texts(file), model.tokenizer, length), ignored) for file in files)
    return own, held[0] if held else None


def own_chats(s: Settings, model: Model, split: str) -> Text:
    """The model's own greedy answers to problems of the zoo's skills, which are what is scored."""
    prompts = [problem["prompt"] for problem in problems("skills", s.problems, split=split, seed=s.seed)]
    answers = [texts[0].strip() for texts in generate(model, prompts, max_new_tokens=28, batch_size=64)]
    records = [
        {"prompt": prompt, "response": answer} for prompt, answer in zip(prompts, answers, strict=True) if answer
    ]
    examples, _ = make_examples(parse_rows(records, "sft")[0], model.tokenizer, TextSettings())
    return chat_text(examples)


def searched(s: Settings, desk: Desk, model: Model, scorer: Scorer) -> list[Step]:
    """Each step a file of its own, so that a killed search goes on after its last whole one."""
    count = s.blocks or max(len(candidates(model.config, (), s.unit)) // 3, 1)
    steps: list[Step] = []
    for number in range(1, count + 1):
        ahead = search(scorer, model.config, number, s.unit, done=steps)
        name = f"search/{number:03}.jsonl"
        (record,) = desk.records(name, lambda ahead=ahead: [to_record(next(ahead))], made_from=[])  # type: ignore[misc]
        steps.append(from_record(record))
        desk.run.heartbeat("search, steps", number, count)
    return steps


def cut(s: Settings, model: Model, steps: Sequence[Step]) -> Blocks:
    """The blocks of the first steps that hold the share of the parameters that is asked for.

    Raises:
      InputError: all steps together hold less.
    """
    sets = [removed_by(steps[:number]) for number in range(1, len(steps) + 1)]
    found = next((gone for gone in sets if ratio(model.config, gone) >= s.ratio), None) if s.ratio else sets[-1]
    if found is None:
        problem = f"{s.ratio} of the parameters are asked for, the search removes {ratio(model.config, sets[-1]):.3f}"
        raise InputError(problem, field="--ratio", cure="Raise --blocks, or lower it")
    return found


if __name__ == "__main__":
    run_experiment(Settings, main, lambda s: [], presets=PRESETS, description=__doc__)
