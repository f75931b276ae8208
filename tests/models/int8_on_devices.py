"""Run by test_int8.py in its own process with 8 virtual devices: int8 on meshes as on one device."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from fusion_jax.models.folder import load
from fusion_jax.sampling.generate import generate_ids
from fusion_jax.sharding import make_mesh


def main() -> None:
    folder, found = sys.argv[1], {}
    one = load(folder, dtype="int8")
    prompts = [[5, 6, 7, 8], [9, 10]]
    expected = [c.ids for (c,) in generate_ids(one.params, one.config, prompts, max_new_tokens=4, batch_size=2)]
    for sizes in ((1, 8, 1), (2, 2, 2), (4, 1, 2)):
        mesh = make_mesh(*sizes)
        many = load(folder, dtype="int8", mesh=mesh)
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one.params, many.params)
        spread = {len(x.sharding.device_set) for x in jax.tree.leaves(many.params)}
        ids = [
            c.ids for (c,) in generate_ids(many.params, many.config, prompts, max_new_tokens=4, batch_size=2, mesh=mesh)
        ]
        found[str(sizes)] = all(jax.tree.leaves(same)) and spread == {8} and ids == expected
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
