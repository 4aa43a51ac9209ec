"""What a module costs, found by tracing shapes: no weight is made, no number computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from la_core.dryrun import Cost


def cost(module: nnx.Module | Callable[[], nnx.Module], shape: Sequence[int]) -> Cost:
    """What the dry run needs to know of an encoder for samples of one shape.

    Parameters
    ----------
    module
        Left as it is; or a function that makes it, such as ``lambda: network("VGG16")``, which then is made without
        memory.
    shape
        Of one view, such as (3, 224, 224).
    """
    split: Any = nnx.split
    twin: Any = nnx.clone(module) if isinstance(module, nnx.Module) else nnx.eval_shape(module)
    twin.train()
    graph, *pair = split(twin, nnx.Param, ...)
    parameters, state = map(nnx.to_pure_dict, pair)

    def embed(parameters: Any, state: Any, batch: Any) -> Any:
        return nnx.merge(graph, parameters, state)(batch)

    def through(parameters: Any, state: Any, batch: Any) -> Any:
        """The backward pass, whose leaves are what it keeps of the forward pass."""
        return jax.vjp(lambda parameters: embed(parameters, state, batch), parameters)[1]

    def kept(batch: Any) -> int:
        leaves = jax.tree.leaves(jax.eval_shape(through, parameters, state, batch))
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)

    array: Any = jax.ShapeDtypeStruct
    two, four = (array((size, *shape), jnp.float32) for size in (2, 4))
    traced, z = jax.make_jaxpr(embed, return_shape=True)(parameters, state, two)
    return Cost(
        macs=sum(_macs(traced.jaxpr)) // 2,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(parameters)),
        activations=(kept(four) - kept(two)) // 2,  # the difference: what is kept of the weights is in both
        dim=z.shape[1],
    )


def _macs(jaxpr: Any) -> Iterator[int]:
    """Multiplications of every convolution and matrix product."""
    for equation in jaxpr.eqns:
        out, numbers = equation.outvars[0].aval, equation.params.get("dimension_numbers")
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            yield out.size * kernel.size // kernel.shape[numbers.rhs_spec[0]]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = numbers
            yield out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from (times * macs for macs in _macs(inner))
