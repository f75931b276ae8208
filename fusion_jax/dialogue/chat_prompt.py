"""What a chat model is asked for instead of a trained generator, and what of its answer counts.

Section 8 of MK-TOD's specification. The published instruction and demonstrations are not public: this one is without
demonstrations. Retrieved entities come from a trained retriever, by rank, without a negative one.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusion_jax.dialogue.meta import Form
from fusion_jax.errors import InputError, quoted

INSTRUCTION = (
    "You are the system in a dialogue with a user. Below are entities of a knowledge base that may be relevant, and "
    "the dialogue so far. Write the system's next response: one line, in lower case. Take names, numbers and all other "
    "values from the entities as they are written there, and invent none."
)
EXPLAINED: dict[Form, str] = {
    "none": "",
    "prefix": (
        "Three tags stand before each entity. The first tells whether the dialogue has named it: <old-entity> or "
        "<new-entity>. The second tells how sure the retriever is of it: <high-confidence>, <mid-confidence> or "
        "<low-confidence>. The third tells how important it is: from <1th-entity>, the most important, to "
        "<5th-entity>, or <other-entity>."
    ),
    "chat": (
        "Sentences stand before each entity. They tell whether it has appeared in the dialogue before, how possible it "
        "is that this matters, and how important it is, top-1 the most."
    ),
}


def chat_prompt(context: str, entities: Sequence[str], form: Form) -> str:
    """The one message that the chat model reads.

    Args:
      entities: as `meta.decorated` writes them in this form, by rank.
      form: "none", "prefix" or "chat".

    Raises:
      InputError: another form.
    """
    if form not in EXPLAINED:
        cure = f"Give one of {', '.join(EXPLAINED)}"
        raise InputError(f"{quoted(form)} is not told to chat models", field="form", cure=cure)
    told = f"{INSTRUCTION} {EXPLAINED[form]}".rstrip()
    listed = "\n".join(entities) or "(none)"
    return f"{told}\n\nEntities:\n{listed}\n\nDialogue:\n{context}\n\nResponse:"


def reply_of(answer: str) -> str:
    """The response in a chat model's answer: its first line with text, without quotes and a leading "system:".

    >>> reply_of('System: "It is in the north."  \\nAnything else?')
    'It is in the north.'
    """
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    line = line.strip("\"'\u201c\u201d ")
    if line.lower().startswith("system:"):
        line = line[len("system:") :].strip("\"'\u201c\u201d ")
    return line
