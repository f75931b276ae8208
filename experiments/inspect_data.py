"""Show what a model is trained on: records rendered, tokenised and masked, coloured in a terminal.

    python experiments/inspect_data.py --preset llama3-8b --data quadruples.jsonl --model FOLDER --count 3
    python experiments/inspect_data.py                                     # an example of the zoo

Data: pairs, quadruples or SFT records in any of their forms (docs/data.md).

Green tokens are scored, dim ones are given; a bar separates tokens. Plain brackets mark the scored part where there
are no colours. The presets read text as those of experiments/wrpo.py do; what an experiment is given beside its preset
(`--text...`, and for SFT of `llama3-8b` the packing) is to be given here as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.console import Console
from rich.text import Text

from experiments import wrpo
from fusion_jax.data import ranked
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import parse_rows
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.options import File, ModelPath
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment
from fusion_jax.zoo import model_path

SLOTS = {"quad": ("source chosen", "target chosen", "rejected"), "pair": ("chosen", "rejected"), "sft": ("response",)}
EXAMPLE = {
    "prompt_id": "example", "prompt": {"role": "user", "content": "What is 12 + 30?"},
    "chosen": [{"role": "assistant", "content": "The answer is 42."}, {"role": "assistant", "content": "42"}],
    "rejected": [{"role": "assistant", "content": "41"}],
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Records and the model that would read them."""

    basic: ClassVar = ("model", "data", "kind", "start", "count", "text.tokens.max_length", "text.packing")

    model: ModelPath = "zoo:target"
    """Whose tokenizer and chat template are used: a folder, or zoo:NAME."""
    data: File = ""
    """Records; without, an example of the zoo."""
    kind: Literal["auto", "quad", "pair", "sft"] = "auto"
    """What a record is: a quadruple, a pair, or one for SFT; auto goes by the fields of the first record."""
    start: int = 0
    """Usable records that are passed over."""
    count: int = 3
    """Records that are shown."""
    text: TextSettings = TextSettings()

    def __post_init__(self) -> None:
        bounded(self, "start", least=0)
        bounded(self, "count", least=1)


PRESETS = {name: Settings(text=preset.text) for name, preset in wrpo.PRESETS.items()}


def main(s: Settings) -> None:
    tokenizer = tokenizer_of(model_path(s.model, "--model"), "--model")
    records = load_records(s.data) if s.data else [EXAMPLE]
    kind = kind_of(records[0] if records else {}) if s.kind == "auto" else s.kind
    rows, dropped = parse_rows(records, kind, file=s.data or None)
    if s.start >= len(rows):
        raise InputError(f"{s.start} is out of range", field="--start", cure=f"There are {len(rows)} usable records")
    rows = rows[s.start : s.start + s.count]
    examples, counts = make_examples(rows, tokenizer, s.text)
    console = Console()
    fields = ", ".join(records[0]) if records else "nothing"
    console.print(f"read as {kind} ({', '.join(SLOTS[kind])}); record 1 has {fields}", highlight=False, markup=False)
    for number, example in enumerate(examples):
        name = f"block {number}" if s.text.packing != "none" else rows[example.index].name
        console.rule(f"{name}")
        for slot, ids, start, scored in zip(SLOTS[kind], example.rows, example.starts, example.scored):
            console.print(f"{slot}: {start} given, {scored} scored", style="bold", highlight=False)
            console.print(coloured(tokenizer.convert_ids_to_tokens(list(ids)), start, console.is_terminal))
    console.print(f"dropped: {dict(dropped)}  counted: {dict(counts)}", highlight=False)


def kind_of(record: Record) -> str:
    """What a record is read as by its fields: without "rejected" for SFT, with two chosen messages a quadruple."""
    if "non_preferred_output" in record:  # OpenAI's form of a pair
        return "pair"
    if "rejected" not in record:
        return "pair" if ranked.listed(record) else "sft"
    chosen, rejected = record.get("chosen"), record["rejected"]
    sizes = [len(x) if isinstance(x, list) else 0 for x in (chosen, rejected)]
    return "quad" if sizes == [2, 1] else "pair"


def coloured(tokens: list[str], start: int, colours: bool) -> Text:
    """Tokens separated by bars; the scored ones green, or in brackets."""
    out = Text()
    for i, token in enumerate(tokens):
        scored = i >= max(start, 1)
        out.append(token if colours or not scored else f"[{token}]", style="green" if scored else "dim")
        out.append("|" if i + 1 < len(tokens) else "", style="dim")
    return out


if __name__ == "__main__":
    run_experiment(Settings, main, presets=PRESETS, description=__doc__)
