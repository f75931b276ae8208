"""Tensors of a checkpoint that are no weights: what a model computes anew, masks, counters, ids of positions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fusion_jax.models.safetensors_io import TensorEntry

NAMED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|inv_freq|masked_bias|position_ids"
    r"|token_type_ids|num_updates|num_batches_tracked|embed_positions\._float_tensor)$"
)
MASK = re.compile(r"(^|\.)(attn|attention|self_attn)\.bias$")  # a causal mask, if it has four dimensions
PACKED = re.compile(
    r"(^|\.)(weight|kernel|qweight|qzeros|scales|g_idx|weight_packed|weight_scale(_inv)?|weight_shape|SCB"
    r"|weight_format|absmax|quant_map|quant_state(\..+)?|nested_absmax|nested_quant_map)$"
)


def is_buffer(name: str, entry: TensorEntry, ignored: Sequence[str] = ()) -> bool:
    """Whether a tensor is no weight: it has a buffer's name, or holds whole numbers or truth values.

    Whole numbers under a weight's name are packed weights of a quantised model, no buffer.

    Args:
      ignored: patterns of what else the checkpoints of a family hold beside their weights.
    """
    if any(re.search(pattern, name) for pattern in ignored):
        return True
    if NAMED.search(name) or (MASK.search(name) and len(entry.shape) == 4):
        return True
    return entry.dtype.kind in "biu" and not PACKED.search(name)
