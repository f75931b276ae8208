"""How much of a source's knowledge a pair of tokenizers lets through, before any training: a coverage report.

    python experiments/align_report.py                                          # the zoo's pair on the zoo's texts
    python experiments/align_report.py --pivot FOLDER --source llama3.tiktoken --texts a.jsonl b.txt --both True

Data: pivot and source are Hugging Face folders, zoo:NAME, or vocabulary files (SentencePiece BPE .model, .tiktoken, the
latter cut into words as Llama-3 does). Texts are JSON lines with "text", grouped by "language" where a record has one,
else by file; or plain files, one text a line. No weights are read.

Hardware: a CPU; the default takes 5 s. Result: a table on
the screen; report.md, report.json and coverage.png in --out. Expected of the default: exact .33, suffix .18,
one-to-many .37, fallback .13 of the pivot's tokens, words at the start of a line among those that fall back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusion_jax.align.coverage import Direction, Method, direction_of
from fusion_jax.align.sequences import Variant
from fusion_jax.align.settings import AlignSettings
from fusion_jax.align.tables import as_json, coverage_sentence, section, summary
from fusion_jax.align.views import Pieces
from fusion_jax.align.vocabulary import Weight
from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.markdown import save_figure
from fusion_jax.options import Files, Folder, ModelPath
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.plots import shares_figure
from fusion_jax.runs.provenance import Ran, write_report
from fusion_jax.runs.tokenizer_pairs import groups_of, named_tokenizer
from fusion_jax.settings import bounded, to_json
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.run_folder import RunFolder

Map = Literal["exact", "mined", "statistics"]


@dataclass(frozen=True)
class Settings:
    """Two tokenizers, texts, and the rules of alignment."""

    pivot: ModelPath = "zoo:target"
    """Tokenizer that receives: a folder, zoo:NAME, or a .model or .tiktoken file."""
    source: ModelPath = "zoo:gemma-source"
    """Tokenizer that gives, named alike."""
    texts: Files = ()
    """Files of texts, grouped by "language" or by file; without, the zoo's."""
    out: Folder = "runs/align_report"
    """Folder of the report, which is made."""
    resume: bool = False
    """Write the report again where --out holds an unfinished one."""
    variant: Variant = "chat_v2"
    """The rules: FuseLLM's, or those of FuseChat's first or second version."""
    map: Map = "statistics"
    """The vocabulary map; statistics are counted on these texts."""
    maps: tuple[Map, ...] = ("exact", "mined", "statistics")
    """Maps whose images are told besides; mined ones of large vocabularies take minutes."""
    pieces: Pieces = "bytes"
    """What tokens are compared by: the bytes that they spell or, as published, their raw strings."""
    ms_weight: Weight = "inverse"
    """How statistics weigh the pairs that were counted; code as published."""
    align: Method = "dp"
    """Token alignment: the variant's edit distances (dp), or equal ends in the text (byte_offsets)."""
    hard: bool = False
    """The exact mode of chat_v2, which takes the exact map."""
    one_to_many: bool = True
    """Whether one pivot token can take its row from several source tokens (chat variants)."""
    both: bool = False
    """Report the other direction, too."""
    max_length: int = 2048
    """Tokens of a window of text."""
    max_texts: int = 0
    """Texts of a group; 0: all."""
    worst: int = 15
    """Tokens shown of those that fall back most."""

    def __post_init__(self) -> None:
        bounded(self, "max_length", least=1)
        bounded(self, "max_texts", "worst", least=0)


ABOUT = """Shares of the pivot's tokens by what they get: the source's row of the same token (exact), of one that ends
alike (suffix), of one of several tokens (one-to-many), only the next token of the text, which the row is to predict
(fallback), nothing (empty). Unmapped: share of the source's tokens without an image under the map; other text: of those
whose image is another text, so that a teacher who is sure of such a token has its mass go there."""


def main(s: Settings) -> None:
    if s.hard and (s.variant != "chat_v2" or s.map != "exact"):
        raise InputError("goes with chat_v2 and the exact map only", field="--hard", cure="Leave it out")
    pivot, source = named_tokenizer(s.pivot, "--pivot"), named_tokenizer(s.source, "--source")
    groups = {name: texts[: s.max_texts or None] for name, texts in groups_of(s.texts).items()}
    how = AlignSettings(s.variant, s.align, s.map, s.ms_weight, s.pieces, hard=s.hard, one_to_many=s.one_to_many)
    pairs = [(pivot, source), (source, pivot)][: 1 + s.both]
    with open_run(s.out, s, resume=s.resume) as run:
        found = [direction_of(how, s.maps, *pair, groups, max_length=s.max_length, worst=s.worst) for pair in pairs]
        report(s, run, found)
        run.finish()


def report(s: Settings, run: RunFolder, directions: Sequence[Direction]) -> None:
    """report.md, its pictures, report.json; the tables also on the screen."""
    parts = [ABOUT, f"Rules {s.variant}, map {s.map}, alignment {s.align}, pieces compared as {s.pieces}."]
    for number, direction in enumerate(directions):
        bars = {group.group: group.rules for group in direction.found.groups}
        figure = shares_figure(bars, xlabel=f"share of pivot tokens, {direction.title}", grey=("fallback", "empty"))
        run.secure()
        picture = save_figure(figure, run.file("coverage_reversed.png" if number else "coverage.png"))
        parts.append(section(direction, picture))
        run.console.print(summary(direction), soft_wrap=True, markup=False, highlight=False)
    ran = Ran(__file__, s, {"tiny": Settings()})
    write_report(run, "Coverage of a pair of tokenizers", coverage_sentence(directions[0]), ran, parts)
    write_json(run.file("report.json"), {"settings": to_json(s), "directions": list(map(as_json, directions))})
    run.log(f"report: {run.file('report.md')}")


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
