"""lm-eval's own command line, which knows the backend `fusion_jax`."""

from __future__ import annotations

import sys

from fusion_jax.errors import InputError


def main() -> None:
    try:
        import fusion_jax.evals.harness.backend  # noqa: F401
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
