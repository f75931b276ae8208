"""Run by test_together.py in its own process with 8 virtual devices: two models, each on four of them."""

from __future__ import annotations

import json
import sys

import jax

import fusion_jax as fj
from fusion_jax.cool.answers import answers
from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import meshes_for, sources_of
from fusion_jax.zoo import model_path

PROMPTS = ["Reverse a b c", "Write each letter twice: d e f", "Sort: c a b"]
SETTINGS = CoolSettings(mode="cool", max_segments=8, segment_tokens=8, batch_size=3)


def main() -> None:
    models = {name: fj.load(model_path(f"zoo:{name}")) for name in ("plants-qwen", "gemma-source")}
    meshes = meshes_for(list(models.values()))
    apart = [{device.id for device in mesh.devices.flat} for mesh in meshes if mesh is not None]
    found = [[one.text for one in answers(sources_of(models, some), PROMPTS, SETTINGS)] for some in (meshes, [None] * 2)]
    same = len(found[0]) == 3 and any(found[0]) and found[0] == found[1]
    json.dump({"own devices": len(apart) == 2 and not apart[0] & apart[1], "same": same}, sys.stdout)
    assert jax.device_count() == 8


if __name__ == "__main__":
    main()
