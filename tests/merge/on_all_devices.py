"""Every recipe *.json of a folder merged over all devices into a folder of the recipe's name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from fusion_jax.merge import merge
from fusion_jax.sharding import make_mesh

assert jax.device_count() == 8
for recipe in sorted(Path(sys.argv[1]).glob("*.json")):
    merge(json.loads(recipe.read_text()), recipe.with_suffix(".eight"), mesh=make_mesh(fsdp=8))
