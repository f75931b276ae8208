"""A pruned model learns again what it lost: from texts alone, or from what the whole model predicts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fusion_jax.data.batches import Data, Example
from fusion_jax.data.documents import Document, chat_documents, encode_documents, plain_examples
from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_texts
from fusion_jax.data.records import parse_rows
from fusion_jax.data.windows import window_documents
from fusion_jax.models.folder import Model
from fusion_jax.options import File
from fusion_jax.prune.blocks import Blocks
from fusion_jax.prune.export import without_blocks
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.pruning import PruningSettings, answers_to
from fusion_jax.settings import bounded
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.teachers.blocks import LogProbs
from fusion_jax.teachers.documents import read_documents
from fusion_jax.teachers.opinions import own_opinions
from fusion_jax.teachers.rows import fusion_rows
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.targets import fused_examples
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective
from fusion_jax.train.settings import TrainSettings, compute_for

Recovery = Literal["none", "sft", "distil"]


@dataclass(frozen=True)
class RecoverySettings(PruningSettings):
    """Pruning, and how the pruned model learns again."""

    recovery: Recovery = "none"
    """What follows the pruning: nothing, training on texts (sft; with train.lora_rank adapters alone), or training on
    what the whole model predicts of each of their tokens, its k most probable entries (distil)."""
    recovery_texts: File = ""
    """Texts of the recovery; without, the whole model's own answers to problems of the zoo's skills."""
    recovery_problems: int = 150
    """Without texts: the zoo's problems of each skill."""
    k: int = 10
    """Entries that are kept of each distribution of the whole model."""
    log_probs: LogProbs = "float16"
    """How log-probs are kept of them: to the bit (float16), or in 8 bits (docs/stores.md)."""
    fusion: FusionSettings = FusionSettings(weight=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "recovery_problems", "k", least=1)

    @property
    def objective(self) -> Objective:
        """Of the recovery."""
        return objectives.fusion(self.fusion) if self.recovery == "distil" else objectives.sft()


def recovered(s: RecoverySettings, desk: Desk, model: Model, removed: Blocks) -> Model:
    """The pruned model after its recovery, without the blocks that are gone; made once, in recovery/.

    Args:
      model: the whole one.
    """
    train, most = replace(s.train, seed=desk.seed), min(s.length, model.config.max_positions)
    documents = learnt(s, desk, model)
    desk.counter("recovery").update({"texts": len(documents)})
    desk.check_enough(len(documents), train, "--train")
    if s.recovery == "distil":
        examples = _distilled(s, desk.run.sub("teacher"), model, documents, most, train)
    else:
        examples = plain_examples(encode_documents(model.tokenizer, documents, max_length=most))
    stage = Stage("recovery", "--train", train, TextSettings())
    return desk.train_on(stage, without_blocks(model, removed), s.objective, Data(examples))


def learnt(s: RecoverySettings, desk: Desk, model: Model) -> Sequence[Document]:
    """What the pruned model reads: texts in windows, or chats of which the answers are scored."""
    if s.recovery_texts:
        most = min(s.length, model.config.max_positions) - 1
        found, counts = window_documents(load_texts(s.recovery_texts), [model.tokenizer], most)
        desk.counter("recovery").update(counts)
        return found
    records = desk.records(
        "recovery.jsonl", lambda: answers_to(s, desk, model, "skills", "train", s.recovery_problems, 1)
    )
    return chat_documents(parse_rows(records, "sft")[0], model.tokenizer, model.tokenizer)


def _distilled(
    s: RecoverySettings, run: RunFolder, model: Model, documents: Sequence[Document], most: int, train: TrainSettings
) -> Sequence[Example]:  # fmt: skip
    """The texts with what the whole model says of each token, stored."""
    reading = read_documents(
        run.file("whole"), "whole", model, documents, k=s.k, max_length=most, compute=compute_for(train),
        batch_size=s.rows, progress=run.progress, log_probs=s.log_probs,
    )  # fmt: skip
    rows, _ = fusion_rows(reading.texts, [own_opinions(reading, s.fusion)])
    return fused_examples(run.file("examples"), rows, s.fusion, mask="labels")
