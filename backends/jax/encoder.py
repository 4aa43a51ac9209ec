"""Any pytree of parameters with any optax optimizer, and any flax NNX module, as an encoder of ``la_core.train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from la_core.backends.jax.exchange import load_torch_weights, torch_weights
from la_core.errors import BackendError, KindError, NotFiniteError, ShapeError
from la_core.export import fit
from la_core.settings import Settings

Tree: TypeAlias = Any
"""A pytree of arrays."""
Apply: TypeAlias = Callable[[Tree, Tree, Array, bool], tuple[Array, Array, Tree]]
"""``apply(parameters, state, batch, training) -> embeddings (B, D), features (B, ...), new state``; pure."""

_NORMALISATION = (nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm)


def make_optimizer(settings: Settings, decayed: Tree = True) -> optax.GradientTransformation:
    """The optimizer that the settings describe, its learning rate held in its state.

    ``decayed`` tells which parameters get weight decay: a pytree of bools, or part of one. See :func:`decayed`.
    """

    def rule(learning_rate: Any) -> optax.GradientTransformation:
        if settings.optimizer == "adam":
            return optax.adamw(learning_rate, weight_decay=settings.weight_decay, mask=decayed)
        return optax.chain(
            optax.add_decayed_weights(settings.weight_decay, decayed),
            optax.sgd(learning_rate, momentum=settings.momentum),
        )

    made: optax.GradientTransformation = optax.inject_hyperparams(rule)(learning_rate=settings.learning_rate)
    return made


def decayed(module: nnx.Module) -> Tree:
    """Which parameters of a module get weight decay: all but those of normalisation layers."""
    plain = [path for path, part in nnx.iter_modules(module) if isinstance(part, _NORMALISATION)]

    def decays(path: tuple[Any, ...], _: Array) -> bool:
        return tuple(key.key for key in path[:-1]) not in plain

    return jax.tree_util.tree_map_with_path(decays, nnx.to_pure_dict(nnx.state(module, nnx.Param)))


class JaxEncoder:
    """A pure function of parameters and state, with any optax optimizer. Nothing is compiled twice for one batch size.

    Parameters
    ----------
    apply
        ``apply(parameters, state, batch, training) -> embeddings, features, new state``. The features are those of the
        layer before the embedding; where there is none, the embedding again.
    parameters
        Any pytree of arrays, as your ``init`` gives it; copied.
    state
        Any pytree of arrays that moves without gradients: running statistics, keys of dropout; copied.
    optimizer
        With its learning rate in its state: ``optax.inject_hyperparams(optax.sgd)(learning_rate=0.03)``, or
        :func:`make_optimizer`. Without one, the encoder can be applied and not trained.
    device
        That of the backend. Of several devices each has the weights, and works on its part of every batch; batch norm
        is over the whole batch all the same, and dropout as one device draws it.
    """

    def __init__(
        self,
        apply: Apply,
        parameters: Tree,
        state: Tree = (),
        optimizer: optax.GradientTransformation | None = None,
        *,
        device: Any = None,
    ) -> None:
        self.parameters: Tree
        self.state: Tree
        # Copied, since a step gives their memory away.
        self.parameters, self.state = jax.device_put(jax.tree.map(jnp.array, (parameters, state)), device)
        self.optimizer = optimizer
        self.moments: Tree = None
        self._gradients: Tree = None
        self._finite: Array | None = None
        self._before: Tree = self.state
        placed: dict[str, Any] = {}
        rows: NamedSharding | None = None
        if isinstance(device, NamedSharding):
            rows, placed = _by_rows(device), {"out_shardings": device}
            apply = _divided(apply, rows, device)
        self._forward, self._embed, self._back = _forward(apply, rows), _embed(apply), jax.jit(_back, **placed)
        if optimizer is not None:
            self.moments = jax.device_put(optimizer.init(self.parameters), device)
            rates = optax.tree_utils.tree_get_all_with_path(self.moments, "learning_rate")
            if not rates:
                raise KindError(
                    "the optimizer must keep its learning rate in its state, so that each step can set it: "
                    "optax.inject_hyperparams(optax.sgd)(learning_rate=0.03)"
                )
            self._move = _move(optimizer, placed)

    def apply(self, batch: Array) -> tuple[Array, Array]:
        """Embeddings and features, in evaluation mode."""
        z, features = self._embed(self.parameters, self.state, batch)
        return z, features

    def pullback(self, batch: Array) -> tuple[Array, Callable[[Array], None]]:
        """Embeddings, and the backward pass through what the forward pass has kept."""
        self._before = self.state
        z, through, self.state = self._forward(self.parameters, self.state, batch)

        def back(cotangent: Array) -> None:
            self._gradients, self._finite = self._back(through, cotangent)

        return z, back

    def step(self, learning_rate: float) -> None:
        """One step of the optimizer, in the memory of the parameters.

        Raises
        ------
        NotFiniteError
            A gradient holds NaN or infinity: names the first. Nothing has moved.
        """
        if self.optimizer is None:
            raise BackendError("this JaxEncoder was made without an optimizer, so it cannot be trained")
        if not self._finite:
            bad = (name for name, x in _by_path(self._gradients).items() if not jnp.isfinite(x).all())
            raise NotFiniteError(f"the gradient of {next(bad)} holds NaN or infinity")
        self.parameters, self.moments = self._move(self.parameters, self.moments, self._gradients, learning_rate)
        self._gradients = None

    def revert(self) -> None:
        """Put the state where it was before the last :meth:`pullback`."""
        self.state = self._before

    def weights(self) -> dict[str, np.ndarray]:
        """Parameters and state as NumPy arrays, named by their path."""
        return {name: np.array(_numbers(x)) for name, x in self._named().items()}

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over weights by name: all that :meth:`weights` names, in its shapes."""
        taken = _taken("weights", self._named(), weights)
        self.parameters, self.state = jax.tree.unflatten(jax.tree.structure((self.parameters, self.state)), taken)

    def training_state(self) -> dict[str, np.ndarray]:
        """The optimizer's state as NumPy arrays, named by their path; keys of dropout are among the weights."""
        return {name: np.array(_numbers(x)) for name, x in _by_path(self.moments).items()}

    def load_training_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over the state of the same optimizer on the same parameters."""
        taken = _taken("optimizer state", _by_path(self.moments), state)
        self.moments = jax.tree.unflatten(jax.tree.structure(self.moments), taken)

    def _named(self) -> dict[str, Array]:
        return _by_path({"parameters": self.parameters, "state": self.state})


class NnxEncoder(JaxEncoder):
    """A flax NNX module as an encoder; later changes of ``module`` itself do not reach it.

    Parameters
    ----------
    module, optimizer, device
        As for :class:`JaxEncoder`.
    features
        Name of the part, such as ``"layer3"``, whose output counts as the layer before the embedding. By default a
        module with a part ``head`` and a method ``features``, or ``before_head`` where ``features`` names a part, gives
        the head's input, and any other its embeddings.
    """

    def __init__(
        self,
        module: nnx.Module,
        optimizer: optax.GradientTransformation | None = None,
        *,
        device: Any = None,
        features: str | None = None,
    ) -> None:
        self.network = type(module).__name__
        self._graphs: dict[bool, Any] = {}
        modes: dict[bool, Any] = {False: module.eval, True: module.train}
        for training, enter in modes.items():
            enter()
            self._graphs[training], parameters, state = _split(module, nnx.Param, ...)
        if features is not None:
            _place(module, "features", features)

        def apply(parameters: Tree, state: Tree, batch: Array, training: bool) -> tuple[Array, Array, Tree]:
            there = nnx.merge(self._graphs[training], parameters, state)
            if features is not None:
                with _watched(there, "features", (features,)) as kept:
                    z = there(batch)
                before = kept[features]
            elif hasattr(there, "head") and (backbone := _backbone(there)) is not None:
                before = backbone(batch)
                z = there.head(before)
            else:
                z = before = there(batch)
            return z, before, nnx.to_pure_dict(_split(there, nnx.Param, ...)[2])

        super().__init__(apply, nnx.to_pure_dict(parameters), nnx.to_pure_dict(state), optimizer, device=device)
        self._layers = jax.jit(self._outputs, static_argnums=3)

    def layers(self, batch: Array, names: Sequence[str]) -> dict[str, Array]:
        """Outputs of parts by name, (B, C, H, W) or (B, F), in evaluation mode. Names are as in :func:`torch_weights`.

        Raises
        ------
        KindError
            A name that is no part's, or a part that took no part.
        """
        kept: dict[str, Array] = self._layers(self.parameters, self.state, batch, tuple(names))
        return {name: kept[name] for name in names}

    def _outputs(self, parameters: Tree, state: Tree, batch: Array, names: tuple[str, ...]) -> dict[str, Array]:
        there = nnx.merge(self._graphs[False], parameters, state)
        with _watched(there, "names", names) as kept:
            there(batch)
        return {name: _widened(x) for name, x in kept.items()}

    def torch_weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights under PyTorch's names and in its layouts."""
        return torch_weights(nnx.merge(self._graphs[False], self.parameters, self.state))

    def load_torch_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`torch_weights` of an encoder on any library gave; a head left out stays as it is.

        Raises
        ------
        KindError, ShapeError
            Names that are missing or unknown, or another shape: nothing is changed then.
        """
        mine = self.torch_weights()
        fit(mine, weights, "what was given")
        module = nnx.merge(self._graphs[False], *jax.tree.map(jnp.array, (self.parameters, self.state)))
        load_torch_weights(module, mine | dict(weights))
        taken = [nnx.to_pure_dict(part) for part in _split(module, nnx.Param, ...)[1:]]
        self.parameters, self.state = jax.device_put(taken, jax.tree.leaves(self.parameters)[0].sharding)


nnx_encoder = NnxEncoder
_split: Any = nnx.split


def _backbone(module: nnx.Module) -> Callable[[Array], Array] | None:
    """The method that gives the head's input. A part named ``features``, as torchvision has it, does not."""
    names = [name for name in ("before_head", "features") if name not in vars(module) and hasattr(module, name)]
    return getattr(module, names[0]) if names else None


def _place(module: nnx.Module, argument: str, name: str) -> tuple[Any, str]:
    """Where the part of that name is held: its owner, and the attribute. The list of a Sequential is not named."""
    owner: Any = None
    part: Any = module
    for key in name.split("."):
        owner = part.layers if isinstance(part, nnx.Sequential) else part
        part = vars(owner).get(key) if isinstance(owner, nnx.Module) else None
        if not callable(part):
            raise KindError(f"{argument} must name parts of the encoder; got {name!r}")
    return owner, key


@contextmanager
def _watched(module: nnx.Module, argument: str, names: tuple[str, ...]) -> Iterator[dict[str, Array]]:
    """What the named parts give while the module is called; maps are turned channels first."""
    kept: dict[str, Array] = {}
    places = {name: _place(module, argument, name) for name in names}
    parts = {name: vars(owner)[key] for name, (owner, key) in places.items()}

    def watch(name: str, *args: Any, **kwargs: Any) -> Array:
        out: Array = parts[name](*args, **kwargs)
        kept[name] = jnp.moveaxis(out, -1, 1) if out.ndim > 2 else out
        return out

    # By vars(): an NNX module takes no function for a part by assignment.
    for name, (owner, key) in places.items():
        vars(owner)[key] = partial(watch, name)
    try:
        yield kept
    finally:
        for name, (owner, key) in places.items():
            vars(owner)[key] = parts[name]
    if set(kept) != set(names):
        raise KindError(f"these parts took no part in the embedding: {sorted(set(names) - set(kept))}")


_constrained: Any = lax.with_sharding_constraint  # untyped


def _by_rows(device: NamedSharding) -> NamedSharding:
    spec: Any = PartitionSpec
    return NamedSharding(device.mesh, spec(device.mesh.axis_names))


def _divided(apply: Apply, rows: NamedSharding, device: NamedSharding) -> Apply:
    """Each device works on its part of the batch, and all have what comes out."""

    def divided(parameters: Tree, state: Tree, batch: Array, training: bool) -> tuple[Array, Array, Tree]:
        z, features, moved = apply(parameters, state, _constrained(batch, rows), training)
        z = _constrained(z, rows)  # and so its cotangent
        z, features, moved = _constrained((z, features, moved), device)
        return z, features, moved

    return divided


@partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["n", "sharding"])
@dataclass(frozen=True)
class _Kept:
    """Of an array of the batch what each device keeps for the backward pass.

    Parts that differ by a row exist inside a program only: what it gives is filled up, or would be gathered.
    """

    rows: Array
    n: int
    sharding: NamedSharding

    @classmethod
    def of(cls, x: Array, n: int, sharding: NamedSharding) -> Array | _Kept:
        """What a batch of n rows has left behind, if x is of them."""
        if not x.ndim or x.shape[0] != n or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return x
        filled = jnp.pad(_constrained(x, sharding), [(0, -n % sharding.mesh.size)] + [(0, 0)] * (x.ndim - 1))
        return cls(_constrained(filled, sharding), n, sharding)

    @staticmethod
    def back(x: Array | _Kept) -> Array:
        """As it was."""
        return _constrained(x.rows[: x.n], x.sharding) if isinstance(x, _Kept) else x


def _forward(apply: Apply, rows: NamedSharding | None = None) -> Any:
    def forward(parameters: Tree, state: Tree, batch: Array) -> tuple[Array, Any, Tree]:
        def embed(parameters: Tree) -> tuple[Array, Tree]:
            z, _, moved = apply(parameters, state, batch, True)
            return _embedding(z), moved

        z, through, moved = jax.vjp(embed, parameters, has_aux=True)
        if rows is not None:
            through = jax.tree.map(partial(_Kept.of, n=batch.shape[0], sharding=rows), through)
        return z, through, moved

    return jax.jit(forward)


def _back(through: Any, cotangent: Array) -> tuple[Tree, Array]:
    """Gradients, and whether all of their numbers are finite."""
    through = jax.tree.map(_Kept.back, through, is_leaf=lambda x: isinstance(x, _Kept))
    (gradients,) = through(cotangent)
    return gradients, jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(gradients)] or [jnp.array(True)]).all()


def _embed(apply: Apply) -> Any:
    def embed(parameters: Tree, state: Tree, batch: Array) -> tuple[Array, Array]:
        z, features, _ = apply(parameters, state, batch, False)
        return _embedding(z), _widened(features.reshape(len(features), -1))

    return jax.jit(embed)


def _move(optimizer: optax.GradientTransformation, placed: Mapping[str, Any]) -> Any:
    def move(parameters: Tree, moments: Tree, gradients: Tree, learning_rate: Array) -> tuple[Tree, Tree]:
        dtype = optax.tree_utils.tree_get_all_with_path(moments, "learning_rate")[0][1].dtype
        moments = optax.tree_utils.tree_set(moments, learning_rate=learning_rate.astype(dtype))
        updates, moments = optimizer.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    return jax.jit(move, donate_argnums=(0, 1), **placed)


def _embedding(z: Array) -> Array:
    if z.ndim != 2:
        raise ShapeError(f"the encoder must map a batch to embeddings (B, D); it gave {z.shape}")
    return _widened(z)


def _widened(x: Array) -> Array:
    """Half precision as float32."""
    return x.astype(jnp.float32) if x.dtype in (jnp.float16, jnp.bfloat16) else x


def _by_path(tree: Tree) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _taken(what: str, mine: dict[str, Array], given: Mapping[str, np.ndarray]) -> list[Array]:
    """The given arrays in the order, on the device and of the dtype of mine, if they have its names and shapes."""
    if set(mine) != set(given):
        missing, unknown = sorted(set(mine) - set(given)), sorted(set(given) - set(mine))
        raise KindError(f"{what} of another encoder: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, x in mine.items():
        if _numbers(x).shape != np.shape(given[name]):
            raise ShapeError(f"{name} must have shape {_numbers(x).shape}; got {np.shape(given[name])}")
    return [_like(x, given[name]) for name, x in mine.items()]


def _numbers(x: Array) -> Array:
    """``x``, or the integers of a typed key."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _like(x: Array, saved: np.ndarray) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        key = jnp.array(saved, jnp.uint32, device=x.device)
        typed: Array = jax.random.wrap_key_data(key, impl=jax.random.key_impl(x))
        return typed
    return jnp.array(saved, x.dtype, device=x.device)
