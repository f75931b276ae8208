"""YAML files that people write: plain values only, each key once, mistakes told with their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fusion_jax.errors import InputError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which builds plain values only; a key that stands twice is an error here."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key '{key.value}' stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def read_yaml(path: Path, kind: str) -> Any:
    """The values of a YAML file.

    Args:
      kind: what such a file is called in messages, for instance "recipe".

    Raises:
      InputError: no such file, not UTF-8, broken YAML (with its line), a key twice, YAML that makes Python objects.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, cure=f"Check the {kind}'s path") from None
    except IsADirectoryError:
        raise InputError(f"is a folder, not a {kind}", file=path, cure="Give the YAML file in it") from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", file=path, cure=f"Give a {kind} in YAML") from None
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "is not YAML"
        line = "" if mark is None else f"line {mark.line + 1}: "
        if "could not determine a constructor" in problem:
            tag = problem.rpartition(" ")[2]
            raise InputError(
                f"{line}asks for an object of type {tag}", file=path, cure=f"Write plain values; {kind}s never run code"
            ) from None
        cure = "Correct the indentation or quoting there"
        raise InputError(f"{line}is broken YAML ({problem})", file=path, cure=cure) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"is broken YAML ({type(error).__name__})", file=path, cure="Write plain values") from None
