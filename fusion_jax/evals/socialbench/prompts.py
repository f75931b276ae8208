"""Prompts: a record becomes one text of the user, in this project's wording, the benchmark's own, or another one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.socialbench.records import EMOTION, GROUP, HUMOR, MEMORY, SITUATION, Item
from fusion_jax.json_files import read_json

REWRITTEN = Path(__file__).with_name("rewritten_v1.json")
SLOTS = {
    "choice": ("role_profile", "conversations", "role_name", "options"),
    "emotion": ("conversations", "utterance", "options"),
    "open": ("role_profile", "conversations", "role_name"),
    "group": ("role_profiles", "conversations", "role_name", "options"),
}
OFFICIAL = {
    "choice_en": "26d1727ac60402b81836a98779e2a7c2c8fefe37ef23298eab592f644e3169be",
    "choice_zh": "39d3390b12d9d74d8eb63c2ff0caec5a98d39c2d0835649bd5592aecdb0f2d71",
    "emotion_en": "670f01d8077687c83d9901bf564daa2ccf6d23f1cdc48d22bbfb435b5f16600d",
    "emotion_zh": "11a90efa4609c4d37318b899ad6c6c231d3606c0a11c80eef7e18896d42044d3",
    "open_en": "c6154810181d0c8634c76903f7f14d6db1b361e19f54bc77e55f39e2f8416744",
    "open_zh": "6111f057d085113976ed674c7cf3fb3921dccdd9656fd156777d17324cdd5f49",
    "group_en": "af9824c2ec18b1fb7aad133e09842de12618e192708bb5662ebb8bfa4dbf2cfa",
    "group_zh": "24cbd759d3f733c67646020c5119781a1e5059d3ce71b54b745f1247e3dacc5a",
}
"""sha256 of each of the benchmark's own templates in UTF-8."""
PROFILE_LINES = 10  # of each role's profile that a group prompt shows

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Templates:
    """Texts with slots in braces. wording: what reports call them."""

    wording: str
    texts: Mapping[str, str] = field(repr=False)


class Prompt(NamedTuple):
    """text: what is asked. dropped: utterances that were left out, the oldest."""

    text: str
    dropped: int


def rewritten() -> Templates:
    """This project's wording."""
    return Templates("rewritten-v1", _read(REWRITTEN))


def templates_of(path: str | os.PathLike[str], *, own: bool = False) -> Templates:
    """Templates of a JSON file with the keys of `OFFICIAL`.

    Args:
      own: whether another wording than the benchmark's is taken, too; it is called by its hash.

    Raises:
      InputError: a key is missing or unknown, a slot is missing or unknown; or, unless `own`, a template is not the
        benchmark's, by its sha256.
    """
    texts = _read(path)
    differing = [key for key, text in texts.items() if _sha256(text) != OFFICIAL[key]]
    if not differing:
        return Templates("official", texts)
    if not own:
        raise InputError(
            f"is not the benchmark's own wording (sha256 {_sha256(texts[differing[0]])[:16]}..., "
            f"not {OFFICIAL[differing[0]][:16]}...)", file=path, field=differing[0],
            cure="Correct the file, or give --own-wording True for a wording of your own",
        )  # fmt: skip
    return Templates(f"own-{_sha256(''.join(texts[key] for key in OFFICIAL))[:12]}", texts)


def _read(path: str | os.PathLike[str]) -> dict[str, str]:
    found = read_json(path)
    for key in OFFICIAL:
        if not isinstance(found.get(key), str):
            raise InputError("is missing or no text", file=path, field=key, cure="Write all eight templates")
        slots, needed = set(_SLOT.findall(found[key])), set(SLOTS[key.partition("_")[0]])
        if slots != needed:
            wrong = sorted(slots ^ needed)[0]
            problem = f"has no slot {{{wrong}}}" if wrong in needed else f"has the slot {{{wrong}}}, which is unknown"
            raise InputError(problem, file=path, field=key, cure=f"Use {', '.join(sorted(needed))}")
    unknown = sorted(found.keys() - OFFICIAL.keys())
    if unknown:
        raise InputError(f"{quoted(unknown[0])} is no template", file=path, cure=f"Keep {', '.join(OFFICIAL)}")
    return {key: found[key] for key in OFFICIAL}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def prompt_of(item: Item, templates: Templates, *, dropped: int = 0, profile: bool = True) -> str:
    """What a model is asked of a record.

    Args:
      dropped: the oldest utterances that are left out. profile: whether profiles are shown, else their place is empty.
    """
    conversations = "".join(f"{one.speaker}: {one.value}\n" for one in item.dialogue[dropped:])
    options = "".join(f"{letter}. {text}\n" for letter, text in item.choices)
    if item.kind in (SITUATION, HUMOR):
        return f"{conversations}\n{options}"
    slots = {"conversations": conversations, "options": options, "role_name": item.name}
    if item.kind == EMOTION:
        return _filled(templates, "emotion", item.lang, slots | {"utterance": item.dialogue[-1].value})
    if item.kind.startswith(GROUP):
        return _filled(templates, "group", item.lang, slots | {"role_profiles": _profiles(item) if profile else ""})
    shown = dict(item.profile)[item.name] if profile else ""
    return _filled(templates, "open" if item.kind == MEMORY else "choice", item.lang, slots | {"role_profile": shown})


def fitted(item: Item, templates: Templates, fits: Callable[[str], bool], *, profile: bool = True) -> Prompt:
    """The prompt with as few of the oldest utterances left out as make it fit; the last one always stays, as do
    profiles and options, so that the shortest prompt may still be too long."""

    def of(dropped: int) -> str:
        return prompt_of(item, templates, dropped=dropped, profile=profile)

    if fits(whole := of(0)):
        return Prompt(whole, 0)
    low, high = 1, len(item.dialogue) - 1  # the answer lies between them
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(of(middle)) else (middle + 1, high)
    dropped = max(high, 0)
    return Prompt(of(dropped), dropped)


def _profiles(item: Item) -> str:
    """The first lines of every role's profile, the played one's too."""
    kept = ["\n".join(re.sub(r"\n+", "\n", text).split("\n")[:PROFILE_LINES]) for _, text in item.profile]
    return "\n\n\n".join(kept)


def _filled(templates: Templates, kind: str, lang: str, slots: Mapping[str, str]) -> str:
    """The template with its slots filled in one pass: braces in what is filled in are text."""
    return _SLOT.sub(lambda found: slots[found[1]], templates.texts[f"{kind}_{lang}"])
