"""What an optimizer step reads and writes, and where each part lives on the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.display import brief
from fusion_jax.keeping import kept
from fusion_jax.losses.schedules import POLYNOMIAL_END, learning_rate
from fusion_jax.models.parameters import LORA
from fusion_jax.settings import bounded

Params = dict[str, Any]


class TrainState(NamedTuple):
    """step: optimizer steps done; halted: a step was not finite, nothing changes any more."""

    step: Any
    halted: Any
    params: Params
    opt_state: optax.OptState

    def __repr__(self) -> str:
        return brief(self)


class Pace(NamedTuple):
    """What the host tells an optimizer step, whose program is the same at every pace.

    total: int32[], optimizer steps of the whole run. rate: float32[], the step's learning rate. companion: float32[],
    that of the parameters under "companion"; None where there are none.
    """

    total: Any
    rate: Any
    companion: Any = None


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with a warmed-up schedule; the defaults are the published WRPO run's."""

    learning_rate: float = 3e-7
    """Largest step size, reached when the warm-up ends."""
    schedule: Literal["cosine", "linear", "polynomial", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; polynomial is linear and ends at 1e-7 instead of 0."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    warmup_steps: int = 0
    """Steps in which it does, instead of a share of them; 0 leaves it to warmup_ratio."""
    beta1: float = 0.9
    """AdamW's decay of the mean of the gradients."""
    beta2: float = 0.999
    """AdamW's decay of the mean of their squares."""
    eps: float = 1e-8
    """AdamW's term against division by zero."""
    weight_decay: float = 0.0
    """Decay of matrices at every step; norms and biases do not decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; a larger gradient is scaled down to it."""

    def __post_init__(self) -> None:
        bounded(self, "learning_rate", "eps", "weight_decay", least=0)
        bounded(self, "warmup_ratio", least=0, most=1)
        bounded(self, "warmup_steps", least=0)
        bounded(self, "beta1", "beta2", least=0, below=1)
        bounded(self, "clip_norm", above=0)
        if self.schedule == "polynomial":
            bounded(self, "learning_rate", above=POLYNOMIAL_END)

    def rate(self, num_steps: int) -> optax.Schedule:
        """The learning rate of each of `num_steps` steps."""
        return learning_rate(
            self.learning_rate, num_steps=num_steps, warmup_ratio=self.warmup_ratio, warmup_steps=self.warmup_steps,
            schedule=self.schedule,
        )  # fmt: skip


COMPANION = "companion"


def paces(
    settings: OptimizerSettings, num_steps: int, companion: OptimizerSettings | None = None
) -> Callable[[int], Pace]:
    """The pace of each step, 0-based. companion: how the parameters under "companion" are trained."""
    own, beside = (None if s is None else rates(s, num_steps) for s in (settings, companion))
    assert own is not None

    def pace(step: int) -> Pace:
        return Pace(np.int32(num_steps), own[step], None if beside is None else beside[step])

    return pace


def rates(settings: OptimizerSettings, num_steps: int) -> np.ndarray:
    """float32[num_steps], the learning rate of each step, computed in float64: on any device the same."""
    with jax.enable_x64(True):  # as one program: each of its operations alone takes as long to compile
        found = jax.jit(settings.rate(num_steps))(np.arange(num_steps))
    return np.broadcast_to(np.asarray(found, np.float32), (num_steps,))


def make_optimizer(
    settings: OptimizerSettings, companion: OptimizerSettings | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, then AdamW; matrices decay, norms and biases do not. `update` takes the step's `pace`.

    Settings that differ in nothing but the learning rate and its schedule give the same optimizer.

    companion: of the parameters under "companion", which are clipped and stepped by themselves.
    """
    own, beside = (None if s is None else _steady(s) for s in (settings, companion))
    assert own is not None
    return _adamw(own) if beside is None else _side_by_side(own, beside)


def _steady(settings: OptimizerSettings) -> OptimizerSettings:
    """The settings without what the pace tells."""
    paced = ("learning_rate", "schedule", "warmup_ratio", "warmup_steps")
    return replace(settings, **{name: getattr(OptimizerSettings, name) for name in paced})


@kept
def _adamw(settings: OptimizerSettings) -> optax.GradientTransformationExtraArgs:
    def decayed(params: Params) -> Params:
        return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding", *LORA), params)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.chain(
            optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps),
            optax.add_decayed_weights(settings.weight_decay, decayed),
            _at_pace(),
        ),
    )


def _at_pace() -> optax.GradientTransformationExtraArgs:
    """Times -`pace.rate`. Its state, which nothing reads, is that of a schedule: checkpoints look alike."""

    def init(params: Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: Params, state: optax.ScaleByScheduleState, params: Params | None = None, *, pace: Pace, **_: Any
    ) -> tuple[Params, optax.ScaleByScheduleState]:
        scaled = jax.tree.map(lambda u: -jnp.asarray(pace.rate, u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


@kept
def _side_by_side(
    settings: OptimizerSettings, companion: OptimizerSettings
) -> optax.GradientTransformationExtraArgs:
    """One optimizer for a model's own parameters, another one for its companion's."""
    own, beside = _adamw(settings), _adamw(companion)

    def init(params: Params) -> tuple[Any, Any]:
        first, second = _parted(params)
        return own.init(first), beside.init(second)

    def update(
        grads: Params, state: tuple[Any, Any], params: Params, *, pace: Pace, **_: Any
    ) -> tuple[Params, tuple[Any, Any]]:
        assert pace.companion is not None, "the companion has a learning rate of its own"
        (first, second), (weights, others) = _parted(grads), _parted(params)
        new, own_state = own.update(first, state[0], weights, pace=pace)
        new_beside, other_state = beside.update(second, state[1], others, pace=pace._replace(rate=pace.companion))
        return {**new, COMPANION: new_beside}, (own_state, other_state)

    return optax.GradientTransformationExtraArgs(init, update)


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> TrainState:
    """A fresh state around `params`, which are copied: the step donates the state's buffers."""
    if mesh is None:
        return jax.jit(_fresh, static_argnums=1)(params, optimizer)
    abstract = jax.eval_shape(functools.partial(_fresh, optimizer=optimizer), params)
    shardings = state_shardings(abstract, jax.tree.map(lambda p: p.sharding, params), mesh)
    return jax.jit(_fresh, static_argnums=1, out_shardings=shardings)(params, optimizer)


def _fresh(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    masters = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)
    return TrainState(jnp.zeros((), jnp.int32), jnp.zeros((), bool), masters, optimizer.init(masters))


def state_shardings(abstract: TrainState, param_shardings: Params, mesh: Mesh) -> TrainState:
    """Shardings of a whole state: moments lie where their parameters lie, scalars on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = [(abstract.params, param_shardings)]
    if COMPANION in param_shardings:
        whole += zip(_parted(abstract.params), _parted(param_shardings), strict=True)

    def of(node: Any) -> Params | None:
        """Where the parameters lie that a part of the state is as large as, leaf by leaf."""
        return next((placed for params, placed in whole if _shapes(params) == _shapes(node)), None)

    placed = jax.tree.map(
        lambda node: everywhere if (found := of(node)) is None else found, abstract.opt_state,
        is_leaf=lambda node: of(node) is not None,
    )  # fmt: skip
    return TrainState(everywhere, everywhere, param_shardings, placed)


def _parted(params: Params) -> tuple[Params, Params]:
    """A model's own parameters, and its companion's."""
    return {name: part for name, part in params.items() if name != COMPANION}, params[COMPANION]


def _shapes(tree: Any) -> Any:
    """The tree's structure with the shapes of its leaves, to be compared."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [leaf.shape for leaf in leaves]
