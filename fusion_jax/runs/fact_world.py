"""The miniature of KCA: a base model raised on what is written about half of an invented world's people, and a helper
and a judge that know the world exactly, behind the same contract as a model that is asked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from fusion_jax.asking.contract import Question
from fusion_jax.asking.given import Given
from fusion_jax.data.batches import Data
from fusion_jax.data.documents import Document, encode_documents, plain_examples
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.kca.papers import Paper
from fusion_jax.kca.prompts import block, task_of, written
from fusion_jax.kca.records import LETTERS, ExamItem, Instance, Source
from fusion_jax.kca.template import PLAIN, SYSTEM
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.knowing import KnowingSettings, MiniatureSettings, Side
from fusion_jax.runs.trained import trained
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import compute_for
from fusion_jax.zoo import facts
from fusion_jax.zoo.facts import Asked, World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PIECES, HEAD = r"\n|[A-D]\. \w+|\w+|[^\w\s]", 24
POSITIONS = 512


def tokenizer_of(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Whole words, options behind their letters, single marks and line breaks of the world and of some texts.

    An option is one piece, so that a model of three layers can learn to find the letter of what it remembers.
    """
    from transformers import PreTrainedTokenizerFast

    found = [piece for text in texts for piece in re.findall(PIECES, text)]
    pieces = list(dict.fromkeys(("<pad>", "<s>", "</s>", "<unk>", "\n", *facts.words(), "USER", "ASSISTANT", *found)))
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = PLAIN  # as in the chats that it reads in its pretraining
    return fast


def raised(s: KnowingSettings, desk: Desk, world: World) -> Model:
    """The base model: random weights of the run's seed, and what the pretraining texts teach it."""
    tokenizer, m = tokenizer_of([s.refusal, SYSTEM]), s.miniature
    start = Model(_config(len(tokenizer), m), {}, tokenizer)
    start = dataclasses.replace(start, params=init_params(start.config, jax.random.key(desk.seed)))
    documents = [_document(n, pieces) for n, pieces in enumerate(world.papers(m.papers, m.items))]
    settings = dataclasses.replace(m.raising, seed=desk.seed)
    desk.check_enough(len(documents), settings, "--miniature.raising", counts=False)
    desk.counter("raised")["texts"] = len(documents)

    def data() -> Data:
        return Data(
            plain_examples(encode_documents(tokenizer, documents, max_length=POSITIONS), tokenizer.bos_token_id)
        )

    return trained(
        desk.run.sub("raised"), start, compute_for(settings).mesh,
        lambda folder: optimise(start, data(), objectives.sft(), settings, folder), made_from=[],
    )  # fmt: skip


def _config(words: int, m: MiniatureSettings) -> ModelConfig:
    return config_from_hf({
        "model_type": "llama", "vocab_size": words, "hidden_size": m.width, "intermediate_size": 2 * m.width,
        "num_hidden_layers": m.layers, "num_attention_heads": max(m.width // HEAD, 1),
        "num_key_value_heads": max(m.width // HEAD, 1), "head_dim": HEAD, "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "initializer_range": m.width**-0.5,
    })  # fmt: skip


def _document(number: int, pieces: Sequence[tuple[str, str]]) -> Document:
    """A text of which what completes each piece is learnt."""
    text, scored = "", []
    for given, completes in pieces:
        begun = len(text) + len(given)
        text += given + completes + ("" if completes == "" or completes.strip() in LETTERS else " ")
        if completes:
            scored.append((begun, begun + len(completes)))
    return Document(f"text {number + 1}", text, tuple(scored), (), False)


def paper_of(world: World) -> Paper:
    """The exam's paper: the world's header, and questions about people whom the base model knows."""
    return Paper(facts.HEADER, tuple(map(_test, world.exemplars())))


def instances_of(world: World, side: Side) -> list[Instance]:
    """Requests of a side with their answers."""
    return [Instance(Source(one.name, one.request, one.answer)) for one in world.requests(side)]


def groups_of(world: World, side: Side) -> dict[str, str]:
    """Request -> whether it is about somebody whom the base model has read about: "seen", "unseen", "no facts"."""
    seen = {person.name: person.seen for person in world.people.values()}
    return {one.request: _group(one, seen) for one in world.requests(side)}


def _group(one: Asked, seen: dict[str, bool]) -> str:
    return "no facts" if not one.person else "seen" if seen[one.person] else "unseen"


def _test(item: facts.Item) -> ExamItem:
    return ExamItem(item.question, item.options, LETTERS[item.answer], "It stands in the note.")


def helper_of(world: World, compat: bool = False) -> Given:
    """Who writes and judges without a model. compat: in the published form."""

    def say(question: Question) -> str:
        text, task = question.messages[-1].content, task_of(question)
        if task == "need":
            return written(task, _need(world, _required(text, "Request")), compat)
        if task == "knowledge":
            return world.note(_required(text, "Request"))
        if task == "exam":
            count = int(re.findall(r"Make (\d+)", text)[0])
            tests = [_test(item)._asdict() for item in world.tests(_required(text, "Note"), count)]
            return written(task, {"tests": tests}, compat)
        outcome = outcome_of(world, _required(text, "Question"), _required(text, "Answer"))
        if task == "judge":
            return written(task, {"hallucinated": int(outcome == "wrong"), "spans": [], "why": outcome}, compat)
        return written(task, {"score": {"right": 10, "withheld": 2, "wrong": 1}[outcome], "why": outcome}, compat)

    return Given(f"the world of seed {world.seed}, {world.sizes}", say)


def _need(world: World, request: str) -> Record:
    if not world.needs(request):
        return {"analysis": "It only repeats words.", "label": "no_need", "queries": []}
    return {"analysis": "It asks about somebody.", "label": "need", "queries": [request]}


def outcome_of(world: World, request: str, answer: str) -> facts.Outcome:
    """What an answer is: right, wrong, or withheld."""
    if world.needs(request):
        return world.judged(request, answer)
    return "right" if facts.values_in(answer, facts.EVERY) == [facts.repeated(request)] else "wrong"


def _required(text: str, name: str) -> str:
    found = block(text, name)
    if found is None:
        raise InputError("is missing in the question", field=name, cure="Ask as `kca.prompts` does")
    return found
