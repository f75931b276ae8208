"""Practice of the zoo's models, which know only chats: they learn plain texts before a method fuses what they predict
of such texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusion_jax.data.batches import Data
from fusion_jax.data.documents import Document, encode_documents, plain_examples, text_documents, token_counts
from fusion_jax.errors import InputError
from fusion_jax.models.folder import check_folder, load, save, tokenizer_of
from fusion_jax.plan.parts import Part, Training
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.zoo import model_path
from fusion_jax.zoo.specs import SKILL_LESSONS
from fusion_jax.zoo.tasks import documents


@dataclass(frozen=True)
class Practice:
    """texts: how many each of the models reads, by its zoo:NAME; others stay as they are. settings: how they train.
    max_length: tokens of a text."""

    texts: Mapping[str, int]
    settings: TrainSettings
    max_length: int

    def lessons(self, model: str) -> dict[str, int]:
        """How many texts of each of its skills a model reads."""
        learned = SKILL_LESSONS[model_name(model)].shares
        return {skill: self.texts[model] * n // sum(learned.values()) for skill, n in learned.items()}

    def practises(self, model: str) -> bool:
        return model.startswith("zoo:") and self.texts.get(model, 0) > 0

    def limit(self, model: str) -> int:
        """Tokens of its texts, which are as long as it can read."""
        return min(self.max_length, check_folder(model_path(model)).max_positions)

    def folders(self, desk: Desk, models: Sequence[str]) -> dict[str, Path]:
        """The folder of each model by its name; of one that practises, what it became, made once for all seeds."""
        return {model_name(m): self._made(desk.base, m) if self.practises(m) else model_path(m) for m in models}

    def _made(self, desk: Desk, model: str) -> Path:
        run = desk.run.sub("base").sub(model_name(model))

        def train(folder: Path) -> None:
            texts = documents(self.lessons(model), split="train", seed=desk.seed + 1, repeat=True)
            start = load(model_path(model), mesh=compute_for(self.settings).mesh)
            encoded = encode_documents(start.tokenizer, self._short(model, texts), max_length=self.limit(model))
            reader = optimise(start, Data(plain_examples(encoded)), objectives.sft(), self.settings, run)
            save(reader, folder, dtype="float32")

        run.made_once("model", train, made_from=[])
        return run.file("model")

    def _short(self, model: str, texts: Sequence[str]) -> list[Document]:
        """Those of the zoo's texts that the model reads whole."""
        every, limit = text_documents(texts), self.limit(model)
        counts = token_counts(tokenizer_of(model_path(model)), every)
        found = [one for one, tokens in zip(every, counts, strict=True) if tokens <= limit]
        if not found:
            problem = f"every text that '{model_name(model)}' practises has more than {limit} tokens"
            raise InputError(problem, field="--max-length", cure="Raise it, or take models that need no practice")
        return found

    def parts(self, option: str, models: Sequence[tuple[str, str]]) -> list[Part]:
        """What it computes; option: of the settings; models: the option that names each, and the model."""

        def part(named: str, model: str) -> Part:
            title, texts = f"practice of {model}", sum(self.lessons(model).values())
            how = Training(title, model, objectives.sft(), self.settings, self.limit(model), option, named)
            return replace(how, length="--max-length", records=lambda records: texts)

        return [part(named, model) for named, model in models if self.practises(model)]
