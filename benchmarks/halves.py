"""What a product in bfloat16 takes beside the same in float32, of PyTorch and of JAX, on this CPU.

    python benchmarks/halves.py [--threads 2]

A search in low precision pays where such a product is much faster. It is made as a search makes it: of 64 queries with
a bank, 4 096 rows at a time, of whose scores JAX keeps the greatest, for it leaves out what nobody asks for. Rows are
brought to bfloat16 block by block, as those of a bank in float32 are, or are stored so. Least of seven runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial


def main() -> None:
    """Print a line for each library and kind of product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch; JAX has its own")
    parser.add_argument("--rows", type=int, default=2**20)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    blocks = options.rows // 4096, 4096, options.dim
    for library, of in (("torch", partial(of_torch, threads=options.threads)), ("jax", of_jax)):
        seconds = {name: min(timed(call) for _ in range(7)) for name, call in of(blocks).items()}
        for name, s in seconds.items():
            print(f"{library:<6}{name:<40}{s * 1e3:8.0f} ms  {seconds['float32'] / s:5.2f}x")


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def of_torch(blocks: tuple[int, int, int], threads: int) -> dict[str, Callable[[], object]]:
    """Products by ``torch.mm``."""
    import torch

    torch.set_num_threads(threads)
    bank, z = torch.randn(blocks), torch.randn(64, blocks[2])
    stored, low = bank.bfloat16(), z.bfloat16()
    room = torch.empty(blocks[1:], dtype=torch.bfloat16)
    exact, rough = (torch.empty(64, blocks[1], dtype=kind) for kind in (torch.float32, torch.bfloat16))
    return {
        "float32": lambda: [torch.mm(z, rows.T, out=exact) for rows in bank],
        "bfloat16, from a bank in float32": lambda: [torch.mm(low, room.copy_(rows).T, out=rough) for rows in bank],
        "bfloat16, from a bank in bfloat16": lambda: [torch.mm(low, rows.T, out=rough) for rows in stored],
    }


def of_jax(blocks: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """Products by XLA, in one compiled loop."""
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)
    bank, z = jax.random.normal(key, blocks), jax.random.normal(key, (64, blocks[2]))
    stored, low = bank.astype(jnp.bfloat16), z.astype(jnp.bfloat16)

    def product(z: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.dot(z, rows.astype(z.dtype).T, preferred_element_type=jnp.float32).max()

    run = jax.jit(lambda z, bank: jax.lax.map(lambda rows: product(z, rows), bank))
    return {
        name: lambda args=args: run(*args).block_until_ready()
        for name, args in {
            "float32": (z, bank),
            "bfloat16, from a bank in float32": (low, bank),
            "bfloat16, from a bank in bfloat16": (low, stored),
        }.items()
    }


if __name__ == "__main__":
    main()
