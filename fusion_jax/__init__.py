"""fusion_jax: fuse the strengths of several language models into one compact model.

import fusion_jax as fj
model = fj.load("path/to/huggingface/folder")
fj.generate(model, ["What is 12 + 30?"], max_new_tokens=16)
"""

from fusion_jax import align, losses
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model, load, logits, save
from fusion_jax.sampling.generate import generate

__all__ = ["InputError", "Model", "align", "generate", "load", "logits", "losses", "save"]
