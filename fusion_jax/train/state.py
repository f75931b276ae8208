"""What an optimizer step reads and writes, and where each part lives on the mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.display import brief
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


def make_optimizer(
    settings: OptimizerSettings, num_steps: int, companion: OptimizerSettings | None = None
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; matrices decay, norms and biases do not.

    companion: of the parameters under "companion", which are clipped and stepped by themselves.
    """
    if companion is not None:
        return _side_by_side(make_optimizer(settings, num_steps), make_optimizer(companion, num_steps))
    rate = settings.rate(num_steps)

    def decayed(params: Params) -> Params:
        return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding", *LORA), params)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            rate, settings.beta1, settings.beta2, settings.eps, weight_decay=settings.weight_decay, mask=decayed
        ),
    )


def _side_by_side(
    own: optax.GradientTransformation, beside: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for a model's own parameters, another one for its companion's."""

    def init(params: Params) -> tuple[Any, Any]:
        first, second = _parted(params)
        return own.init(first), beside.init(second)

    def update(grads: Params, state: tuple[Any, Any], params: Params) -> tuple[Params, tuple[Any, Any]]:
        (first, second), (weights, others) = _parted(grads), _parted(params)
        new, own_state = own.update(first, state[0], weights)
        new_beside, other_state = beside.update(second, state[1], others)
        return {**new, COMPANION: new_beside}, (own_state, other_state)

    return optax.GradientTransformation(init, update)


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> TrainState:
    """A fresh state around `params`, which are copied: the step donates the state's buffers."""

    def build(params: Params) -> TrainState:
        masters = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)
        return TrainState(jnp.zeros((), jnp.int32), jnp.zeros((), bool), masters, optimizer.init(masters))

    if mesh is None:
        return jax.jit(build)(params)
    shardings = state_shardings(jax.eval_shape(build, params), jax.tree.map(lambda p: p.sharding, params), mesh)
    return jax.jit(build, out_shardings=shardings)(params)


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
