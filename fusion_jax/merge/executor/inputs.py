"""The model folders that a merge reads, opened and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion_jax.copies import Fetched
from fusion_jax.display import brief
from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.merge.names import ends_of
from fusion_jax.merge.recipes.checkpoints import Checkpoint
from fusion_jax.merge.recipes.model_paths import WITH_ADAPTER
from fusion_jax.merge.recipes.recipe import Recipe
from fusion_jax.models.buffers import is_buffer
from fusion_jax.models.families import FAMILIES, names_of
from fusion_jax.models.families.pruned import MODEL_TYPE
from fusion_jax.models.gguf_header import is_gguf
from fusion_jax.models.head import EMBEDDING, HEAD, usual_tensors, with_head
from fusion_jax.models.json_files import read_config
from fusion_jax.models.safetensors_io import TensorEntry
from fusion_jax.models.stored import root_of, stored_tensors
from fusion_jax.paths import is_remote, listed

# What may not differ between models, also where the shapes of their tensors agree.
SAME = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
SAME_IF_SAID = (  # defaults are the family's
    "use_parallel_residual", "partial_rotary_factor", "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor",
    "topk_method", "topk_group",
)  # fmt: skip

SMALL = (".json", ".jinja", ".txt", ".model")  # files of a folder that are not weights


@dataclass(frozen=True)
class Input:
    """An opened folder: config.json as read, where each weight and each buffer lies.

    tied: whether the head is the embedding; None where config.json does not say. copy: of what is no weight, on this
    machine, where the folder is on a bucket.
    """

    folder: Path
    config: Mapping[str, Any]
    entries: Mapping[str, TensorEntry]
    buffers: Mapping[str, TensorEntry] = field(default_factory=dict)
    tied: bool | None = None
    copy: Fetched | None = None

    def __repr__(self) -> str:
        return brief(self)

    @property
    def files(self) -> Path:
        """The folder, or a local one with a copy of its files but for the weights."""
        return self.folder if self.copy is None else self.copy.path

    @property
    def checkpoint(self) -> Checkpoint:
        """What planning asks for."""
        return Checkpoint({name: e.shape for name, e in self.entries.items()}, self.tied)

    @property
    def fields(self) -> Fields:
        """The fields of config.json by their usual names, whatever the model's family calls them."""
        names = names_of(self.config.get("model_type"))
        return Fields(self.config, self.folder / "config.json").renamed(names)

    @property
    def resolved(self) -> dict[str, Any]:
        """What may not differ between models; a number of heads or a width that config.json leaves out follows."""
        values = self.fields.values
        found = {name: values.get(name) for name in (*SAME, *SAME_IF_SAID)}
        rope = values.get("rope_parameters")
        if found["partial_rotary_factor"] is None and isinstance(rope, dict):
            found["partial_rotary_factor"] = rope.get("partial_rotary_factor")
        heads, width = found["num_attention_heads"], values.get("hidden_size")
        if found["num_key_value_heads"] is None:
            found["num_key_value_heads"] = heads
        if found["head_dim"] is None and isinstance(heads, int) and heads > 0 and isinstance(width, int):
            found["head_dim"] = width // heads
        return found


def open_inputs(recipe: Recipe, locate: Callable[[str], Path]) -> dict[str, Input]:
    """The folders of a recipe by the names it uses; no weight is read.

    Raises:
      InputError: a folder that is missing or broken, or of another architecture than the base (else the first model).
    """
    found: dict[str, Input] = {}
    for model in recipe.inputs:
        base, _, adapter = model.partition(WITH_ADAPTER)
        found[model] = open_input(locate(base), locate(adapter) if adapter else None)
    first = recipe.base or recipe.models[0]
    for other in found.values():
        for name in (*SAME, *SAME_IF_SAID):
            ours, theirs = found[first].resolved[name], other.resolved[name]
            if ours != theirs and not (name in SAME_IF_SAID and None in (ours, theirs)):
                problem = f"is {quoted(theirs)}, but {quoted(ours)} in {first}"
                cure = "Merge models of one architecture; fuse others with experiments/fusechat.py first"
                raise other.fields.wrong(name, problem, cure)
    return found


def open_input(path: Path, adapter: Path | None = None) -> Input:
    """One folder, of any decoder family, or an adapter (PEFT) with its base, or on the one of `path`; no weight is read
    but a head that may equal its embedding.

    Raises:
      InputError: a file that is missing or broken, a weight of a dtype that is not read, a model whose layers lack
        blocks; names file and tensor.
    """
    folder = root_of(path)
    if is_gguf(folder):
        cure = "Save it as a folder first: fusion_jax.save(fusion_jax.load(FILE), FOLDER)"
        raise InputError("is a GGUF file, which a merge does not read", file=folder, cure=cure)
    config, entries = read_config(folder), stored_tensors(path, adapter)
    if config.get("model_type") == MODEL_TYPE:
        problem = "is a pruned model, whose layers lack blocks: a merge does not read it"
        cure = 'Save it in the form "hf" first (fusion_jax.prune.export.served), or prune the merged model'
        raise InputError(problem, file=folder, cure=cure)
    if config.get("model_type") in FAMILIES:
        entries = usual_tensors(entries, FAMILIES[config["model_type"]])
    buffers = {name: entry for name, entry in entries.items() if is_buffer(name, entry)}
    weights = {name: entry for name, entry in entries.items() if name not in buffers}
    for name, entry in weights.items():
        entry.check_weight(name)
    tied: bool | None = Input(folder, config, entries).fields.flag("tie_word_embeddings", None)
    ends = ends_of(weights)
    if tied and (ends.embedding or config.get("model_type") in FAMILIES):
        weights, tied = with_head(weights, tied, embedding=ends.embedding or EMBEDDING, head=ends.head or HEAD)
    small = [name for name in listed(folder) if name.endswith(SMALL)] if is_remote(folder) else []
    return Input(folder, config, weights, buffers, tied, Fetched(folder, small) if small else None)
