"""The process that compiles: a request as JSON on stdin, what came of it as files in the folder named on the line.

    python -m fusion_jax.plan.child FOLDER FULL < request.json

`compile.py` starts it with the environment that the TPU compiler wants and ends it when the dump says enough. Writes
lowered.json (places of the devices in the order of the program's partitions), then, after a full compile, final.txt,
or failed.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fusion_jax.errors import InputError


def main(folder: Path, full: bool) -> None:
    request = json.load(sys.stdin)
    try:
        compile_request(request, folder, full)
    except InputError as error:
        parts = {"problem": error.problem, "field": error.field, "cure": error.cure}
        write(folder, "failed.json", {"kind": "input", **parts})
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        write(folder, "failed.json", {"kind": "memory" if "RESOURCE_EXHAUSTED" in text else "compiler", "text": text})


def compile_request(values: dict, folder: Path, full: bool) -> None:
    """Lower and compile; the compiler dumps what it does as it goes."""
    from jax.experimental import topologies

    from fusion_jax.plan.requests import from_json, lower
    from fusion_jax.slices import slice_of

    request = from_json(values)
    where = slice_of(request.slice)
    described = topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **where.topology_options)
    lowered, devices = lower(request, list(described.devices))
    write(folder, "lowered.json", {"coords": [list(d.coords) for d in devices]})
    compiled = lowered.compile(compiler_options=dict(where.chip.compiler_options))
    if full:
        (folder / "final.part").write_text(compiled.as_text() or "", encoding="utf-8")
        (folder / "final.part").rename(folder / "final.txt")


def write(folder: Path, name: str, values: dict) -> None:
    """A JSON file that is there whole or not at all."""
    part = folder / f"{name}.part"
    part.write_text(json.dumps(values), encoding="utf-8")
    part.rename(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "full")
