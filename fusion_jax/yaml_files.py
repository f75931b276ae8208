"""The one reader of YAML that people write: plain values only, each key once, mistakes told with their line.

A short file can stand for an endless value (aliases of aliases, merge keys): what a file expands to is counted before
it is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fusion_jax.errors import InputError, one_line
from fusion_jax.files import regular_file
from fusion_jax.paths import size_of

LARGEST = 1 << 19  # bytes of a file
NODES = 100_000  # values, with aliases written out
DEEPEST = 50


def read_yaml(path: Path, kind: str, *, several: str | None = None) -> Any:
    """The values of a YAML file.

    Args:
      kind: what such a file is called in messages, for instance "recipe".
      several: what to do with several documents in one file.

    Raises:
      InputError: no such file, no regular file, not UTF-8, broken YAML (with its line), a key twice, several documents,
        YAML that makes Python objects, more than the module's bounds.
    """
    file = regular_file(path, missing=f"Check the {kind}'s path", cure=f"Give the YAML file of the {kind}")
    if (size := size_of(file)) > LARGEST:
        raise InputError(f"is too large for a {kind} ({size} bytes, {LARGEST} at most)", file=path, cure="Shorten it")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", file=path, cure=f"Give a {kind} in YAML") from None
    return parse_yaml(text, kind, file=path, several=several)


def parse_yaml(text: str, kind: str, *, file: Path | None = None, several: str | None = None) -> Any:
    """The values of a YAML text; see `read_yaml`."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_node() if loader.check_node() else None
        if loader.check_node():
            problem = "holds several YAML documents (split by ---), one is read"
            raise InputError(problem, file=file, cure=several or f"Put each document into a {kind} of its own")
        if node is None:
            return None
        _check(node, kind, file)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _told(error, kind, file) from None
    except RecursionError:
        problem = f"is broken YAML (nested more than {DEEPEST} deep)"
        raise InputError(problem, file=file, cure="Write plain values") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        problem = f"is broken YAML ({one_line(str(error), 120)})"
        raise InputError(problem, file=file, cure="Write plain values") from None


def _told(error: yaml.YAMLError, kind: str, file: Path | None) -> InputError:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "is not YAML"
    line = "" if mark is None else f"line {mark.line + 1}: "
    if "could not determine a constructor" in problem:
        tag = problem.rpartition(" ")[2]
        cure = f"Write plain values; {kind}s never run code"
        return InputError(f"{line}asks for an object of type {tag}", file=file, cure=cure)
    return InputError(f"{line}is broken YAML ({problem})", file=file, cure="Correct the indentation or quoting there")


def _check(root: yaml.Node, kind: str, file: Path | None) -> None:
    """Refuse keys that stand twice, nesting and aliases that go too deep or come back to themselves, and too many
    values; each node is visited once, however often aliases name it."""

    def wrong(node: yaml.Node, problem: str, cure: str) -> InputError:
        return InputError(f"line {node.start_mark.line + 1}: {problem}", file=file, cure=cure)

    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in inside:
            raise wrong(node, "an alias names a value that it stands in", "Write the value out")
        if depth > DEEPEST:
            raise wrong(node, f"is broken YAML (nested more than {DEEPEST} deep)", "Write plain values")
        inside.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise wrong(
                            key,
                            f"is broken YAML (the key '{one_line(key.value, 80)}' stands twice)",
                            "Correct it: leave one out",
                        )
                    seen.add(key.value)
                total += size(key, depth + 1) + size(value, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(value, depth + 1) for value in node.value)
        inside.discard(id(node))
        if total > NODES:
            problem = f"stands for more than {NODES} values, with its aliases written out"
            raise wrong(node, problem, f"Write a {kind} without nested aliases")
        sizes[id(node)] = total
        return total

    size(root, 0)
