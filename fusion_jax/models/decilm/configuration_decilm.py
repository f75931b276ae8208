"""The configuration of Nemotron-NAS, for programs that take a folder's own code: vLLM, and transformers with
trust_remote_code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """Llama's, with `block_configs[layer].attention` and `.ffn`, whose fields are those of config.json."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, dict[str, Any]]] | None = None, **fields: Any) -> None:
        super().__init__(**{name: value for name, value in fields.items() if value is not None})
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**own) for part, own in block.items()})
            for block in block_configs or ()
        ]

    def to_dict(self) -> dict[str, Any]:
        """config.json."""
        blocks = [{part: vars(own) for part, own in vars(block).items()} for block in self.block_configs]
        return {**super().to_dict(), "block_configs": blocks}
