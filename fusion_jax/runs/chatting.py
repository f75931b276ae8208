"""A chat model in the place of the generator: it reads the entities of a trained retriever, which stays as it is.

Section 8 of MK-TOD's specification (arXiv 2310.08877), in three forms: no tags, tags explained, sentences.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from fusion_jax.dialogue.chat_prompt import EXPLAINED, chat_prompt, reply_of
from fusion_jax.dialogue.meta import Form, decorated, metas
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.runs.aligning import AligningSettings, Board
from fusion_jax.runs.answering import Answered, tags_of
from fusion_jax.runs.desk import Desk
from fusion_jax.sampling.generate import generate, load_to_sample
from fusion_jax.zoo import model_path


def chat_answers(s: AligningSettings, desk: Desk, board: Board, model: str, arm: str) -> None:
    """The chat model's answers to the test turns, in each form, on the board as "chat, FORM"."""
    found = board.said[arm]
    chat = functools.cache(lambda: load_to_sample(model_path(model)))
    for form in EXPLAINED:
        asked = prompts(s, board, arm, form)
        written = functools.partial(_written, s, chat, asked)
        records = desk.records(f"chat/{form}.jsonl", written, made_from=[f"answers/{arm}.jsonl"])
        answers = [Answered(r["response"], one.entities, one.scores) for r, one in zip(records, found, strict=True)]
        board.answer(f"chat, {form}", answers)


def _written(s: AligningSettings, chat: Callable[[], Model], asked: Sequence[str]) -> list[Record]:
    answers = generate(chat(), asked, max_new_tokens=s.lengths.response, batch_size=s.answer_batch)
    return [{"prompt": p, "answer": a[0], "response": reply_of(a[0])} for p, a in zip(asked, answers, strict=True)]


def prompts(s: AligningSettings, board: Board, arm: str, form: Form) -> list[str]:
    """What the chat model reads of every test turn, with the entities that an arm's retriever found, without a negative
    one."""
    texts, names = board.data.knowledge.texts(keep_missing=s.keep_missing), board.data.knowledge.names
    tags, out = dataclasses.replace(tags_of(s.loss), form=form), []
    for turn, one in zip(board.data.test, board.said[arm], strict=True):
        classes = metas(one.scores, [names[i] for i in one.entities], turn.context, thresholds=s.loss.thresholds)
        out.append(chat_prompt(turn.context, decorated([texts[i] for i in one.entities], classes, tags), form))
    return out
