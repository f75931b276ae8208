"""The key of a server: read from an environment variable, and shown in no text that is made with its help."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fusion_jax.errors import InputError

HIDDEN = "***"


class Key(NamedTuple):
    """A secret: no text that is made of it shows it."""

    secret: Callable[[], str] = lambda: ""

    def __repr__(self) -> str:
        return f"Key({HIDDEN})"

    @classmethod
    def of(cls, variable: str, field: str = "key_variable") -> Key:
        """The key in an environment variable; none where no variable is named.

        Args:
          field: what a message calls the option that names the variable.

        Raises:
          InputError: the variable is not set, or holds what no header can.
        """
        if not variable:
            return cls()
        usual = re.fullmatch("[A-Z_][A-Z0-9_]*", variable)  # anything else may be the key itself, and is not quoted
        found, named = os.environ.get(variable, "").strip(), variable if usual else "the variable"
        if not found:
            cure = f"export {variable if usual else 'NAME'}=KEY, and give the name, not the key"
            raise InputError(f"{named} is not set or empty", field=field, cure=cure)
        if len(found) < 4 or not found.isascii() or not found.isprintable() or " " in found:
            cure = "Set it to the key alone: 4 characters at least, ASCII, without spaces"
            raise InputError(f"what {named} holds is no key", field=field, cure=cure)
        return cls(lambda: found)

    def hidden(self, text: str) -> str:
        """A text without the key."""
        return text.replace(secret, HIDDEN) if (secret := self.secret()) else text

    def hidden_in(self, value: Any) -> Any:
        """A JSON value without the key in any of its texts and names."""
        if isinstance(value, str):
            return self.hidden(value)
        if isinstance(value, dict):
            return {self.hidden(name): self.hidden_in(one) for name, one in value.items()}
        return [self.hidden_in(one) for one in value] if isinstance(value, list) else value
