"""lm-eval's own command line, which knows the backend `fusion_jax`."""

from __future__ import annotations

import importlib
import sys

from fusion_jax.errors import InputError


def main() -> None:
    try:
        importlib.import_module("fusion_jax.evals.harness.backend")  # registers it
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
