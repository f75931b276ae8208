"""How long this process has been tracing, lowering and compiling programs, as JAX reports it."""

from __future__ import annotations

import functools
import time

import jax

_EVENTS = "/jax/core/compile/"  # of JAX's monitoring: each is told when it ends, with its seconds


class Meter:
    """Adds up spans of time, those inside others once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._spans: list[tuple[float, float]] = []

    def heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """A span of so many seconds ends now; kwargs: what else JAX tells of it."""
        if not event.startswith(_EVENTS):
            return
        begin = time.perf_counter() - duration_secs
        while self._spans and self._spans[-1][0] >= begin:
            self.seconds -= self._spans.pop()[1]
        self._spans.append((begin, duration_secs))
        self.seconds += duration_secs


@functools.cache
def compiling() -> Meter:
    """The meter of this process; it counts from the first call on."""
    meter = Meter()
    jax.monitoring.register_event_duration_secs_listener(meter.heard)
    return meter
