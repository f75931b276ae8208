"""Dialogues of an experiment: the user's files in MAKER's form, or the miniature's, and the miniature's models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.data.batches import Data, Example
from fusion_jax.data.records import OnBad
from fusion_jax.dialogue.inputs import Inputs
from fusion_jax.dialogue.knowledge import Knowledge, read_knowledge
from fusion_jax.dialogue.meta import TAGS
from fusion_jax.dialogue.sets import SETS, DataSet, Scale
from fusion_jax.dialogue.systems import System
from fusion_jax.dialogue.turns import Turn, read_turns
from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.evals.dialogue.entities import read_entities
from fusion_jax.jsonl import Record
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params
from fusion_jax.runs.desk import Desk
from fusion_jax.zoo import bookings
from fusion_jax.zoo.tokenizers import word_tokenizer

SIDES = ("train", "validation", "test")
HEAD = 16  # numbers of a head of the miniature
RAISED_ON = 10_000  # seeds apart from each other: of the towns that the miniature's generator learns to speak in


@dataclass(frozen=True)
class DialogueFiles:
    """Files of one data set. entities: {slot: [value, ...]}, what the scorer looks for."""

    knowledge: str = ""
    entities: str = ""
    train: str = ""
    validation: str = ""
    test: str = ""


@dataclass(frozen=True)
class Dialogues:
    """A data set. entities: for the scorer."""

    knowledge: Knowledge
    entities: tuple[str, ...]
    train: tuple[Turn, ...]
    validation: tuple[Turn, ...]
    test: tuple[Turn, ...]

    def __repr__(self) -> str:
        return brief(self)


def read_dialogues(
    files: DialogueFiles, dataset: DataSet, scale: Scale, counts: dict[str, Counter[str]], on_bad: OnBad
) -> Dialogues:
    """Everything in lower case; what is dropped or strange is counted by side.

    Raises:
      InputError: a broken file or record; names file, record, field and cure.
    """
    knowledge = read_knowledge(files.knowledge, dataset)
    sides = {}
    for side in SIDES:
        read = read_turns(getattr(files, side), knowledge, scale=scale, on_bad=on_bad)
        sides[side] = read.turns
        counts[f"turns, {side}"] = read.dropped + read.noted + Counter({"used": len(read.turns)})
    return Dialogues(knowledge, read_entities(files.entities, dataset), **sides)


def check_files(files: DialogueFiles) -> None:
    """Refuse some files without the others."""
    missing = [name for name in DialogueFiles.__dataclass_fields__ if not getattr(files, name)]
    if missing and len(missing) < len(DialogueFiles.__dataclass_fields__):
        cure, name = "Give all five files of a data set, or none for the miniature", missing[0]
        option = f"--{name}-turns" if name in SIDES else f"--{name}"
        raise InputError("is missing beside the other files", field=option, cure=cure)


def miniature_files(desk: Desk, sizes: tuple[int, int, int], places: int) -> DialogueFiles:
    """The miniature of a run's seed, written into its folder once."""
    made = desk.run.file("data")
    desk.run.made_once("data", lambda folder: _write(folder, desk.seed, sizes, places), made_from=[])
    return DialogueFiles(*(str(made / f"{name}.json") for name in ("all_db", "entities", "train", "val", "test")))


def _write(folder: Any, seed: int, sizes: tuple[int, int, int], places: int) -> None:
    bookings.write_files(folder, seed, sizes, count=places)


def miniature_system(seed: int, width: int, layers: int, projected: int, *, gated: bool = True) -> System:
    """A T5 and a BERT of random weights over the words of the miniature, with the marks of its data set.

    Args:
      gated: whether the T5 is of version 1.1, or of version 1.0.
    """
    marks, words = SETS[bookings.DATASET].marks, bookings.words()
    reader, asker = word_tokenizer("t5", words, (*marks, *TAGS)), word_tokenizer("bert", words, marks)
    heads, forward = max(width // HEAD, 1), "gated-gelu" if gated else "relu"
    t5 = config_from_hf({
        "model_type": "t5", "vocab_size": len(reader), "d_model": width, "d_kv": HEAD, "d_ff": 2 * width,
        "num_layers": layers, "num_decoder_layers": layers, "num_heads": heads, "feed_forward_proj": forward,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 64, "tie_word_embeddings": not gated,
    })  # fmt: skip
    bert = config_from_hf({
        "model_type": "bert", "vocab_size": len(asker), "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 256,
        "projection_dim": projected, "initializer_range": 0.5 * width**-0.5,
    })  # fmt: skip
    keys, t5 = jax.random.split(jax.random.key(seed)), replace(t5, initializer_range=width**-0.5)

    def scaled(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        """Scores are not scaled, so that queries begin small. What a layer adds is little beside the words, and what
        cross-attention reads is handed on as it is, so that to copy a word is to look at it, which is soon learnt."""
        if path[-1].key == "table":  # the first heads look at the tokens 1, 2, ... before
            return x.at[jnp.arange(1, heads), jnp.arange(heads - 1)].add(5.0)
        if len(path) > 2 and path[-3].key == "cross" and path[-2].key in ("v", "o"):
            return jnp.broadcast_to(jnp.eye(width), x.shape)
        return x * {"q": HEAD**-0.5, "embed": width**0.5, "o": 0.15, "down": 0.15}.get(path[-2].key, 1.0)

    own = jax.tree.map_with_path(scaled, init_params(t5, keys[0]))
    if gated:  # a head of its own, which begins as what the other version has
        own["head"] = {"kernel": own["embed"]["embedding"] * width**-0.5}
    return System(Model(t5, own, reader), Model(bert, init_params(bert, keys[1]), asker))


def shown(inputs: Inputs, turns: Sequence[Turn], about: Sequence[int | None]) -> Data:
    """Turns beside the one place that each response speaks of, or none: what the miniature's generator learns from
    before it meets a retriever."""
    examples = list[Example]()
    for example, place in zip(inputs.examples(turns), about, strict=True):
        own = {"own": np.asarray([-1 if place is None else place], np.int32), "old": np.zeros(1, bool)}
        beside = {name: example.beside[name] for name in ("context", "query")} | own
        examples.append(Example(example.rows, example.starts, example.index, beside=beside))
    return Data(examples, named(turns))


def named(turns: Sequence[Turn]) -> Any:
    """index of an example -> what its turn is called in messages."""
    return lambda number: f"turn {number + 1} (dialogue {turns[number].dialogue})"


def raising_towns(seed: int, towns: int, dialogues: int, places: int) -> tuple[list[Record], list[Record]]:
    """Places and turns of many other towns, in which the miniature's generator learns to speak. No two have the same
    places, so that what a response says of one can only be copied; turns tell places by their number among all."""
    every, turns = list[Record](), list[Record]()
    for number in range(towns):
        made = bookings.bookings(RAISED_ON * (seed + 1) + number, (dialogues, 0, 0), count=places)
        for turn in made.train:
            about = turn["about"]
            turns.append({**turn, "gt_db_idx": [], "about": None if about is None else about + len(every)})
        every += made.town.places
    return every, turns
