"""What a training refuses before its first step: settings, rows and rates that a model cannot be trained with."""

from __future__ import annotations

from pathlib import Path

from fusion_jax.data.batches import Data
from fusion_jax.data.packing import check_packable
from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import Model
from fusion_jax.models.int8 import refuse_int8
from fusion_jax.models.lora import check_lora
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.reference import examples_fingerprint
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import Pace


def check_settings(settings: TrainSettings, model: Model, chosen: bool) -> None:
    """Refuse what this model cannot be trained with. chosen: whether anything is measured to choose a state by."""
    if settings.best_of > 1 and not chosen:
        cure = "Keep some records for evaluation, or leave it at 1"
        raise InputError("needs held-out records to choose by", field="best_of", cure=cure)
    refuse_int8(model.params, "trained")
    if settings.lora is not None:
        check_lora(model.config, settings.lora)
    if settings.router_weight and model.config.experts is None:
        raise InputError("is for routed experts, the model has none", field="router_weight", cure="Leave it at 0")


def check_rate(run: RunFolder, first: Pace, total: int) -> None:
    """Refuse a training whose only step has the learning rate 0 that warm-up begins with."""
    if total == 1 and not first.rate:
        raise InputError(
            f"{run.path.name} has one step, which warm-up gives the learning rate 0: nothing would be learnt",
            field="warmup_ratio",
            cure="Give more records or epochs, lower the batch size, or set warmup_ratio and warmup_steps to 0",
        )  # fmt: skip


def check_examples(run: RunFolder, data: Data, config: ModelConfig, pack_tokens: int, own: bool) -> None:
    """Refuse rows that the model cannot read, examples that rows of `pack_tokens` do not hold and, on resume, other
    examples than the run was started with."""
    if pack_tokens:
        check_packable(data.examples, pack_tokens)
    positions = config.positions
    if config.encoder:
        _check_encoded(data, config, pack_tokens, own)
        read = int(data.extents[:, :2].max())
    else:
        read = max(len(row) for e in data.examples for row in e.rows) - 1  # the last token of a row only is predicted
    if read > positions.max_positions:
        raise InputError(
            f"the longest example has {read + 1} tokens, the model has {positions.max_positions} positions",
            field="max_length", cure=f"Cut examples to {positions.max_positions} tokens",
        )  # fmt: skip
    packed = pack_tokens or any(e.segments for e in data.examples)
    if packed and any(read > switch for switch in positions.switches):
        least = min(positions.switches)
        raise InputError(
            f"the longest example has {read + 1} tokens; from {least} on the model turns all tokens of a text "
            "otherwise, and texts in one row cannot differ in that", field="pack_tokens",
            cure=f"Do not pack, or cut examples to {least} tokens",
        )  # fmt: skip
    run.on_first(lambda: _check_same_examples(run.file("examples.json"), data))


def _check_encoded(data: Data, config: ModelConfig, pack_tokens: int, own: bool) -> None:
    """Refuse rows that are not an encoder's tokens, the decoder's first one and what follows. own: whether the
    objective has a forward pass of its own, which an encoder alone needs and which may find its texts elsewhere."""
    if not config.decoder and not own:
        raise InputError(f"{config.model_type} is an encoder alone, which this does not train", field="model")
    if pack_tokens or any(e.segments for e in data.examples):
        raise InputError("packs rows, which an encoder reads one by one", field="pack_tokens", cure="Leave it at 0")
    for number, example in enumerate(data.examples):
        shared = example.shared
        if (not shared and not own) or (config.decoder and any(row[shared] != config.start for row in example.rows)):
            problem = f"is no text of the encoder, the decoder's first token {config.start}, and what follows"
            raise InputError(problem, record=data.name(number), field="rows", cure="Build rows in this order")


def _check_same_examples(file: Path, data: Data) -> None:
    now = {"sha256": examples_fingerprint(data.examples)}
    if not file.exists():
        write_json(file, now)
    elif read_json(file, cure=RESTORE) != now:
        raise InputError(
            "the run was started with other examples", file=file, field="sha256",
            cure="Resume with the data and tokenizer as they were, or start a new run",
        )  # fmt: skip
