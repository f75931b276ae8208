"""The golden file of MK-TOD, by section."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import GOLDEN


def section(name: str) -> Any:
    """A section of tests/golden/mktod.json."""
    return json.loads((GOLDEN / "mktod.json").read_text())[name]
