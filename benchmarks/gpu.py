"""The GPU that is here beside the goals for one H200: every framework, without the kernels of its own and with them.

    python benchmarks/gpu.py                    ImageNet's size: N = 1 281 167, D = 128, k = 4096 (minutes)
    python benchmarks/gpu.py --clusterings      and the clusterings of G2 (many minutes more)
    python benchmarks/gpu.py --cpu --n 3000     small and without a GPU, to see that it runs: the times mean nothing

A time is the median of at least five calls after a warm-up, each waited for. What the kernels answer is compared with
what is answered without them. The goals were set for bank and centroids in bfloat16; la-core assigns in float32 on the
CUDA cores, about a sixteenth of the H200's bfloat16 rate, so its fractions of that rate can be 0.06 at most. Searches
of PyTorch and JAX are screened by tensor cores in float16.
"""

import argparse
import os
import statistics
import time
import warnings
from functools import partial

os.environ.setdefault("LA_CORE_GPU_KERNELS", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the libraries share the GPU's memory

import numpy as np

import la_core
from la_core import kernels
from la_core.backends import gpu
from la_core.errors import BackendError

RATE, BANDWIDTH = 790e12, 4.3e12
"""Of one H200: multiplications and additions in bfloat16, and bytes, in a second."""
GOALS = {
    "G1": ("assign, fraction of 790 TFLOP/s, m = 10 000 and 30 000", "0.50", "0.75", "0.85"),
    "G1b": ("assign, against flash-kmeans (not run here)", "1.5x", "2.5x", "3x"),
    "G1c": ("iteration of k-means / assign", "1.25", "1.12", "1.06"),
    "G2": ("cold clustering, m = 10 000, H = 3, against cuVS (not run here)", "6x", "15x", "25x"),
    "G2b": ("the same, against faiss-gpu (not run here)", "15x", "30x", "45x"),
    "G2c": ("cold clustering, m = 30 000, H = 10", "6 s", "3.6 s", "3.1 s"),
    "G2d": ("warm clustering, m = 30 000, H = 10", "1.5 s", "0.5 s", "0.25 s"),
    "G3": ("search, B = 1024, against torch's matmul + topk in bfloat16", "4x", "6x", "9x"),
    "G3b": ("search, against cuVS or faiss-gpu (not run here)", "5x", "10x", "15x"),
    "G3c": ("search, B = 1024", "1.0 ms", "0.65 ms", "0.50 ms"),
    "G3d": ("search, B = 128", "0.16 ms", "0.11 ms", "0.06 ms"),
    "G4": ("weighted rows, B = 1024, fraction of 4.3 TB/s", "0.65", "0.80", "0.90"),
    "G4b": ("the same, against torch's index_select + bmm", "4x", "8x", "12x"),
    "G5": ("whole step, B = 1024, against torch's dense scores + autograd", "12x", "20x", "28x"),
    "G6": (
        "an epoch of steps of B = 256 without clustering, share of ResNet-50's 430 s (not measured)",
        "0.03",
        "0.01",
        "0.006",
    ),
}
"""What is measured; and on one H200 what it must reach, the goal, and the stretch."""


class Library:
    """A framework on its GPU, or on the CPU."""

    def __init__(self, name, cpu):
        self.name = name
        self.backend = la_core.backend(name, "cpu" if cpu else None if name == "cupy" else "cuda")
        self.device = "the CPU" if cpu else {"torch": self._torch, "jax": self._jax, "cupy": self._cupy}[name]()

    def _torch(self):
        import torch

        return torch.cuda.get_device_name()

    def _jax(self):
        import jax

        return jax.devices("cuda")[0].device_kind

    def _cupy(self):
        import cupy

        return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()

    def wait(self, result):
        """Until all that was asked for is there."""
        if self.name == "torch":
            import torch

            if torch.cuda.is_available():
                torch.cuda.synchronize()
        elif self.name == "jax":
            import jax

            jax.block_until_ready(result)
        else:
            import cupy

            cupy.cuda.Device().synchronize()

    def forget(self):
        """What was compiled: which kernel answers is decided then."""
        if self.name == "jax":
            import jax

            jax.clear_caches()

    def time(self, call, repeats=7):
        """Median seconds of a call."""
        self.wait(call())
        self.wait(call())
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.wait(call())
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def libraries(cpu):
    """Those that can be used, with what keeps the others from it."""
    found, missing = [], []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name in ("torch", "jax") if cpu else ("torch", "jax", "cupy"):
            try:
                found.append(Library(name, cpu))
            except (BackendError, ImportError, RuntimeError, AssertionError) as error:
                missing.append(f"{name}: {str(error).splitlines()[0][:90]}")
    return found, missing + [str(each.message) for each in said if "LA_CORE_GPU_KERNELS" in str(each.message)]


def unit(rng, *shape):
    """Isotropic unit vectors."""
    x = rng.standard_normal(shape, dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


class Measurements:
    """What one framework does on its GPU: by goal, what is to be printed; and by name, answers to be compared."""

    def __init__(self, framework, sizes):
        self.framework, self.sizes = framework, sizes
        self.rng = np.random.default_rng(0)
        self.bank = self._there(unit(self.rng, sizes.n, sizes.dim))
        self.printed, self.answers = {}, {}
        for m in sizes.m:
            self._assign(m)
        few, many = sizes.batch
        self._put("G3d", f"{1e3 * self._search(few)[0]:.3f} ms")
        self._large_batch(many)
        seconds = sizes.n / 256 * framework.time(self._step(min(256, sizes.n)))
        self._put("G6", f"{seconds / 430:.3f} ({seconds:.1f} s)")
        if sizes.clusterings:
            self._clusterings(*sizes.m)

    def _put(self, goal, text):
        self.printed.setdefault(goal, []).append(text)

    def _there(self, host):
        return self.framework.backend.asarray(host)

    def _assign(self, m):
        bank, centroids, time = self.bank, self.bank[:m], self.framework.time
        labels, _ = kernels.assign(bank, centroids)
        self.answers[f"assign, m = {m}"] = self.framework.backend.to_host(labels)
        seconds = time(lambda: kernels.assign(bank, centroids))
        self._put("G1", f"{2 * self.sizes.n * m * self.sizes.dim / seconds / RATE:.3f} ({1e3 * seconds:.2f} ms)")
        self._put("G1c", f"{1 + time(lambda: kernels.segment_sum(bank, labels, m)) / seconds:.2f}")

    def _search(self, batch):
        """Seconds, queries, and what is found."""
        z = self._there(unit(self.rng, batch, self.sizes.dim))
        found = kernels.nearest(z, self.bank, self.sizes.k)
        self.answers[f"search, B = {batch}"] = self.framework.backend.to_host(found[1])
        return self.framework.time(lambda: kernels.nearest(z, self.bank, self.sizes.k)), z, found

    def _large_batch(self, batch):
        k, dim, time = self.sizes.k, self.sizes.dim, self.framework.time
        search, z, (scores, found) = self._search(batch)
        gather = time(lambda: kernels.weighted_rows(scores, self.bank, found))
        step = time(self._step(batch))
        self._put("G3c", f"{1e3 * search:.3f} ms")
        self._put("G4", f"{4 * batch * k * dim / gather / BANDWIDTH:.3f} ({1e3 * gather:.3f} ms)")
        self._put("G5", f"{1e3 * step:.2f} ms")
        if self.framework.name == "torch":
            matmul_and_topk, select_and_bmm, dense = torch_peers(z, self.bank, k, scores, found)
            self._put("G3", f"{time(matmul_and_topk) / search:.2f}x")
            self._put("G4b", f"{time(select_and_bmm) / gather:.2f}x")
            self._put("G5", f"{time(dense) / step:.2f}x")

    def _step(self, batch):
        """A call that is one step: search, loss, cotangent, update."""
        sizes = self.sizes
        labels = self._there(self.rng.integers(0, sizes.m[0], (3, sizes.n)))
        indices = self._there(self.rng.choice(sizes.n, batch, replace=False))
        z = self._there(unit(self.rng, batch, sizes.dim))
        state = la_core.State(self._there(self.framework.backend.to_host(self.bank)), labels)

        def call():
            nonlocal state
            loss, cotangent = la_core.local_aggregation_and_cotangent(
                z, state, indices, n_background=sizes.k, temperature=0.07
            )
            state = la_core.update(state, indices, z)
            return loss, cotangent, state.bank

        return call

    def _clusterings(self, few, many):
        cluster = partial(la_core.cluster, self.bank, seed=0)
        for goal, options in (
            ("G2", {"n_clusters": few, "n_clusterings": 3}),
            ("G2c", {"n_clusters": many, "n_clusterings": 10}),
            ("G2d", {"n_clusters": many, "n_clusterings": 10, "n_iter": 3}),
        ):
            if goal == "G2d":
                options["start"] = cluster(n_clusters=many, n_clusterings=10).labels
            run = partial(cluster, **options)
            self._put(goal, f"{self.framework.time(lambda run=run: run().labels):.2f} s")


def torch_peers(z, bank, k, scores, found):
    """Calls of torch's own verbs: the search in bfloat16, the weighted sum, and a step with all scores stored."""
    import torch

    half, (batch, dim) = bank.bfloat16(), z.shape

    def matmul_and_topk():
        return torch.topk(z.bfloat16() @ half.T, k, dim=1, sorted=False)

    def select_and_bmm():
        return torch.bmm(scores[:, None], torch.index_select(bank, 0, found.reshape(-1)).view(batch, k, dim))

    def dense():
        query = z.clone().requires_grad_()
        background = torch.topk(query @ bank.T, k, dim=1, sorted=False).values / 0.07
        loss = torch.logsumexp(background, dim=1) - torch.logsumexp(background[:, ::16], dim=1)  # some are close
        loss.mean().backward()
        return query.grad

    return matmul_and_topk, select_and_bmm, dense


def main(arguments=None):
    """Print the goals, and beside them what is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_281_167)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int)
    parser.add_argument("--m", type=int, nargs=2)
    parser.add_argument("--batch", type=int, nargs=2)
    parser.add_argument("--clusterings", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    sizes = parser.parse_args(arguments)
    sizes.k = sizes.k or min(4096, sizes.n // 8)
    sizes.m = sizes.m or [min(10_000, sizes.n // 8), min(30_000, sizes.n // 4)]
    sizes.batch = sizes.batch or [min(128, sizes.n // 8), min(1024, sizes.n // 4)]
    found, missing = libraries(sizes.cpu)
    if not found:
        print("No GPU that torch, jax or cupy can use: nothing is measured.")
        return
    print(f"N = {sizes.n}, D = {sizes.dim}, k = {sizes.k}, m = {sizes.m}, B = {sizes.batch}, float32")
    for line in missing:
        print("not measured:", line)
    least, results = gpu.LEAST, {}
    for framework in found:
        print(f"{framework.name}: {framework.device}")
        for way in ("without", "with"):
            gpu.LEAST = float("inf") if way == "without" else least
            framework.forget()
            results[framework.name, way] = Measurements(framework, sizes)
        gpu.LEAST = least
        plain, own = results[framework.name, "without"].answers, results[framework.name, "with"].answers
        for name, answer in plain.items():
            print(
                f"    {name}: {np.mean(answer == own[name]):.6f} of the answers are equal with the kernels and without"
            )
    for goal, (what, must, wanted, hoped) in GOALS.items():
        print(f"\n{goal:4} {what}: must {must}, goal {wanted}, stretch {hoped}")
        for (name, way), measured in results.items():
            if goal in measured.printed:
                print(f"     {name:6}{way:8}", ", ".join(measured.printed[goal]))


if __name__ == "__main__":
    main()
