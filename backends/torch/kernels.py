"""The kernels that PyTorch does faster than the reference, and the derivatives of those that have one."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from la_core import clusters, kernels, objectives, protocol, tiles
from la_core.backends import gpu, host, scan
from la_core.backends.scan import pays
from la_core.backends.threads import Map, openmp_alone, team
from la_core.backends.torch import screen
from la_core.backends.torch.small import by_numpy
from la_core.errors import NotFiniteError

STRETCH = 4 * kernels.CACHE
"""Bytes of the bank that stay in a cache while weighted sums over them are made."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _full_precision(f: Callable[_P, _R]) -> Callable[_P, _R]:
    """Autocast off: the bank, its scores and their log-sums stay in the bank's dtype."""

    @wraps(f)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        kind = next(a.device.type for a in args if isinstance(a, Tensor))
        if not torch.is_autocast_enabled(kind):
            return f(*args, **kwargs)
        with torch.autocast(device_type=kind, enabled=False):
            return f(*args, **kwargs)

    return run


def _differentiated(*arrays: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in arrays)


_triton: Any = gpu.load("torch.triton")


def _fused(x: Tensor, *shape: int) -> bool:
    """Whether Triton's kernels, if they are turned on, do without an array of this shape."""
    return _triton is not None and x.device.type == "cuda" and x.dtype is torch.float32 and gpu.large(*shape)


@kernels.assign.override("torch")
@_full_precision
def assign(x: Tensor, centroids: Tensor, budget: int = 8 * kernels.CACHE) -> tuple[Tensor, Tensor]:
    """Product and bias in one call, maximum and its place in another: a block is written once and read once.

    On a CPU by NumPy: its BLAS library takes half the time of the MKL in PyTorch's wheel on some, and its maximum is
    found by vector instructions.
    """
    n, m = x.shape[0], centroids.shape[0]
    if _fused(x, n, m):
        labels, squares = _triton.assign(x, centroids)
        return labels, squares
    if x.device.type == "cpu":
        found = host.assign(x.detach().numpy(), centroids.detach().numpy(), budget)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    size = max(64, kernels.BUDGET // (m * kernels.itemsize(x)))
    minus_half, columns = -0.5 * torch.linalg.vecdot(centroids, centroids), centroids.T
    room = x.new_empty((min(n, size), m))
    best, labels = x.new_empty(n), torch.empty(n, dtype=torch.int64, device=x.device)
    for rows in kernels.blocks(n, size):
        block = torch.addmm(minus_half, x[rows], columns, out=room[: rows.stop - rows.start])
        torch.max(block, dim=1, out=(best[rows], labels[rows]))
    return labels, (torch.linalg.vecdot(x, x) - 2.0 * best).clamp_(min=0.0)


# NumPy's products and PyTorch's sums in turn would wait for each other's threads, for longer than either takes.
clusters.lloyd.override("torch")(_full_precision(by_numpy(clusters.lloyd.reference)))


@tiles.neighbours.override("torch")
def neighbours(
    of: Tensor, centroids: Tensor, candidates: int, budget: int = 8 * kernels.CACHE
) -> tuple[Tensor, Tensor]:
    """On a CPU by NumPy's product."""
    if of.device.type != "cpu":
        return tiles.neighbours.reference(of, centroids, candidates, budget)
    protocol.ready("numpy")  # its kernels
    near, far = host.neighbours(of.detach().numpy(), centroids.detach().numpy(), candidates, budget)
    return torch.from_numpy(near), torch.from_numpy(far)


@kernels.top_k.override("torch")
def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """On a CPU by NumPy: its selection moves values alone, by vector instructions, where PyTorch's moves pairs."""
    if x.device.type == "cpu":
        values, columns = map(torch.from_numpy, scan.top_k(x.detach().numpy(), k))
        return torch.gather(x, 1, columns) if _differentiated(x) else values, columns
    return top_k_of_torch(x, k)


def top_k_of_torch(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Select the k largest values, then keep what reaches the least of them: indices come sorted and ties settled."""
    threshold = torch.topk(x, k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    reach = x >= threshold
    flat = reach.nonzero()
    if bool(threshold.isnan().any()):  # NaN ranks highest, and nothing reaches it
        raise NotFiniteError("the bank must be finite; a score against it is NaN")
    if flat.shape[0] > x.shape[0] * k:  # more equals at the k-th place than places: the last ones go
        surplus = reach.sum(dim=1) - k
        for i in surplus.nonzero()[:, 0].tolist():
            reach[i, (x[i] == threshold[i]).nonzero()[-int(surplus[i]) :, 0]] = False
        flat = reach.nonzero()
    columns = flat[:, 1].reshape(-1, k)
    return torch.gather(x, 1, columns), columns


@kernels.along.override("torch")
def along(x: Tensor, columns: Tensor) -> Tensor:
    """``gather``, which takes a twentieth of the time of ``take_along_dim``."""
    return torch.gather(x, 1, columns.long())


@kernels.inverse_norm.override("torch")
def inverse_norm(x: Tensor) -> Tensor:
    """On a CPU by ``rsqrt``: ``sqrt`` may wake all threads (:func:`_alone`), and is not rounded as well."""
    if x.device.type != "cpu":
        found: Tensor = kernels.inverse_norm.reference(x)
        return found
    square = (x * x).sum(dim=-1, keepdim=True)
    some = square > torch.finfo(x.dtype).smallest_normal
    return torch.where(some, torch.where(some, square, 1.0).rsqrt(), 0.0)


@kernels.falling.override("torch")
def falling(x: Tensor) -> Tensor:
    """On a CPU by NumPy, which sorts by vector instructions, forty times as fast."""
    if x.device.type != "cpu" or _differentiated(x):
        return torch.sort(x, dim=1, descending=True).values
    return torch.from_numpy(np.sort(x.detach().numpy(), axis=1)[:, ::-1].copy())


@kernels.segment_sum.override("torch")
def segment_sum(x: Tensor, segments: Tensor, n: int) -> Tensor:
    """``index_add`` on the CPU; elsewhere the accumulating ``index_put``, which sorts and so repeats to the bit."""
    total = x.new_zeros((n, x.shape[1]))
    if x.device.type == "cpu":
        return total.index_add_(0, segments.long(), x)
    return total.index_put_((segments.long(),), x, accumulate=True)


@kernels.put_rows.override("torch")
def put_rows(x: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """In place."""
    with torch.no_grad():
        return x.index_copy_(0, indices.long(), rows)


@kernels.entries.override("torch")
def entries(x: Tensor, indices: Tensor) -> Tensor:
    """Without a look for negative indices, which takes twice as long as the rest."""
    return x.index_select(0, indices.reshape(-1)).view(indices.shape)


@kernels.votes.override("torch")
def votes(labels: Tensor, indices: Tensor, neighbours: Tensor) -> Tensor:
    """On a CPU by NumPy, whose calls on whole numbers take half as long."""
    if labels.device.type != "cpu":
        found: Tensor = kernels.votes.reference(labels, indices, neighbours)
        return found
    return torch.from_numpy(host.votes(labels.numpy(), indices.numpy(), neighbours.numpy()))


@kernels.mean_of_equals.override("torch")
def mean_of_equals(x: Tensor, indices: Tensor) -> Tensor:
    """On a CPU each is the mean of itself, in most batches; a GPU would be waited for."""
    if indices.device.type != "cpu" or not host.distinct(indices.numpy()):
        means: Tensor = kernels.mean_of_equals.reference(x, indices)
        return means
    return x + 0.0  # as in a sum that begins at 0, which has no -0


@kernels.finite.override("torch")
def finite(x: Tensor) -> bool:
    """A sum is finite only if all of it is; where it is not, which may be for its size alone, each is looked at."""
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


@kernels.softmax_ratio.override("torch")
def softmax_ratio(s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The reference in half the passes, in place. The numbers are the same.

    What lies outside of C is not replaced before its exponential is taken but bounded by 1, and multiplied by 0 after.
    """
    if _differentiated(s):
        return kernels.softmax_ratio.reference(s, mask)
    inside = mask.to(s.dtype)
    some = inside.amax(dim=1, keepdim=True)  # 0 or 1
    peak = s.amax(dim=1, keepdim=True)
    weights = (s - peak).exp_()
    total = weights.sum(dim=1, keepdim=True)
    close_peak = s.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True).masked_fill_(some == 0, 0.0)
    close_mass = (s - close_peak).clamp_(max=0.0).exp_().mul_(inside)
    close_total = close_mass.sum(dim=1, keepdim=True) + (1.0 - some)
    loss = torch.where(some > 0, (peak - close_peak) + (total / close_total).log(), math.log(s.shape[1]))
    weights.div_(total).sub_(close_mass.div_(close_total)).mul_(some)
    return loss[:, 0], weights


@kernels.weighted_rows.override("torch")
@_full_precision
def weighted_rows(weights: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """One fused gather and sum: (B, k, D) is never built.

    On a CPU a bank that no cache holds is gone through once for all sums, if they name its rows more often than that.
    """
    total: Tensor
    if bank.dtype is not weights.dtype:
        total = kernels.weighted_rows.reference(weights, bank, indices)
    elif _fused(bank, *weights.shape, bank.shape[1]) and not _differentiated(weights, bank):
        total = _triton.weighted_rows(weights, bank, indices)
    elif _read_again(bank, indices) and not _differentiated(weights, bank):
        total = _by_stretches(weights, bank, indices)
    else:
        total = functional.embedding_bag(indices, bank, per_sample_weights=weights, mode="sum")
    return total


def _read_again(bank: Tensor, indices: Tensor) -> bool:
    """Whether a bank on the CPU is larger than a cache and most of its rows are named several times."""
    return bank.device.type == "cpu" and bank.nbytes >= 4 * STRETCH and indices.numel() >= 2 * bank.shape[0]


def _by_stretches(weights: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """The sums over each stretch of the bank for all of the batch, then the next; in the end those of a row are added.

    Where a row of indices rises what it has of a stretch lies together. Where not, its parts are other ones.
    """
    (batch, k), (n, dim) = indices.shape, bank.shape
    starts = np.arange(0, n, max(1, STRETCH // (dim * bank.itemsize)))
    cuts = np.full((batch, len(starts) + 1), k)
    cuts[:, :-1] = [named.searchsorted(starts) for named in indices.numpy()]
    cuts = (np.maximum.accumulate(cuts, axis=1) + k * np.arange(batch)[:, None]).T
    ends = cuts[:-1].ravel(), cuts[1:].ravel()
    parts = [slice(*both) for both in zip(*map(np.ndarray.tolist, ends), strict=True)]
    named, shares = (
        torch.from_numpy(np.concatenate([flat[part] for part in parts]))
        for flat in (x.detach().reshape(-1).numpy() for x in (indices, weights))
    )
    sizes = torch.from_numpy(ends[1] - ends[0])
    offsets = (sizes.cumsum(0) - sizes).to(named.dtype)
    sums = functional.embedding_bag(named, bank, offsets, per_sample_weights=shares, mode="sum")
    return sums.view(-1, batch, dim).sum(dim=0)


def apply(function: Any, *args: Any) -> Any:
    """``function.apply``, which PyTorch leaves untyped."""
    return function.apply(*args)


def _search(z: Tensor, bank: Tensor, k: int, budget: int) -> tuple[Tensor, Tensor]:
    """The reference; on the CPU a scan with a threshold, of a large bank."""
    if _fused(z, z.shape[0], bank.shape[0]) and bank.dtype is z.dtype and bank.shape[0] >= gpu.SHARE * k:
        scores, indices = _triton.nearest(
            z, bank, k, lambda queries: kernels.nearest.reference(queries, bank, k, budget), budget
        )
        return scores, indices
    if z.device.type != "cpu":
        return kernels.nearest.reference(z, bank, k, budget)
    low = screen.pays(z, bank, k)
    if not low and not pays(bank.shape[0], k):

        def work(queries: slice, budget: int) -> tuple[Tensor, Tensor]:
            return kernels.nearest.reference(z[queries], bank, k, budget)

        scores, indices = host.in_shares(_threads, work, z.shape[0], bank.shape[0], k, budget)
        return scores, indices

    def reference(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, indices = kernels.nearest.reference(z[torch.from_numpy(queries)], bank, k, budget)
        return scores.numpy(), indices.numpy()

    def screened(queries: slice, exactly: scan.Above, size: int) -> scan.Above:
        return screen.Screen(z[queries], bank, exactly, size)

    task = scan.Task(
        lambda queries, rows, out: _product(z[queries], bank[rows], torch.from_numpy(out)),
        *(z.shape[0], bank.shape[0], k, z.numpy().dtype),
    )
    with _threads() as (threads, each):
        room = threads * screen.room(*z.shape)
        if low and 4 * room <= 3 * budget:
            found = scan.scan(task, reference, budget - room, threads, each, screened)
        else:
            found = scan.scan(task, reference, budget, threads, each)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _product(z: Tensor, rows: Tensor, out: Tensor) -> None:
    """``z @ rows.T``, some rows at a time where they must be widened first."""
    if rows.dtype is z.dtype:
        torch.mm(z, rows.T, out=out)
        return
    for some in kernels.blocks(rows.shape[0], 4096):
        out[:, some] = z @ rows[some].T.to(z.dtype)


@contextmanager
def _threads(pays: bool = True) -> Iterator[tuple[int, Map]]:
    """As many as PyTorch may use, each of which computes alone; one where more would not pay.

    PyTorch's own share one product, then wait for the next while one of them selects.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not pays:
        yield 1, map
        return
    with _alone(), team(threads, _alone) as each:
        yield threads, each


def _alone() -> AbstractContextManager[Any]:
    """In which PyTorch has one thread for calls from this one, from now on.

    ``torch.set_num_threads`` does it, too, but what it tells MKL holds for all threads and for good: a root of a single
    number wakes them all from then on. So it is called only where a thread cannot be told by itself.
    """
    before = torch.get_num_threads()  # a new thread's is set by PyTorch when it is first asked for
    until, openmp, mkl = ExitStack(), openmp_alone(), _mkl()
    if openmp is None or mkl is None:
        torch.set_num_threads(1)
        until.callback(torch.set_num_threads, before)  # the last one that is set is also that of new threads
        return until
    until.enter_context(openmp)
    until.callback(mkl, mkl(1))
    return until


@cache
def _mkl() -> Callable[[int], int] | None:
    """Sets how many threads MKL has for calls from this one, 0 for as many as others have, and says what it was."""
    if not torch.backends.mkl.is_available():
        return lambda threads: threads
    try:
        inside = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        local: Callable[[int], int] = inside.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return None
    return local


class _Nearest(torch.autograd.Function):
    """The search itself has no derivative; the scores it finds have one, and it is a weighted sum of the rows found."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bank: Tensor, k: int, budget: int) -> tuple[Tensor, Tensor]:
        scores, indices = _search(z.detach(), bank.detach(), k, budget)
        ctx.save_for_backward(bank, indices)
        ctx.mark_non_differentiable(indices)
        return scores, indices

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bank, indices = ctx.saved_tensors
        return weighted_rows(grads[0], bank, indices), None, None, None


@objectives.aggregate.override("torch")
def aggregate(v: Tensor, bank: Tensor, labels: Tensor, indices: Tensor, **settings: Any) -> tuple[Any, Any, Any]:
    """On a CPU in shares of the batch, where that is faster."""
    if v.device.type != "cpu" or _differentiated(v, bank):
        return objectives.aggregate.reference(v, bank, labels, indices, **settings)
    return host.aggregate(_threads, v.detach(), bank.detach(), labels, indices, **settings)


class _ScoresAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(bank, indices)
        scores: Tensor = kernels.scores_at.reference(z, bank, indices)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bank, indices = ctx.saved_tensors
        return weighted_rows(grads[0], bank, indices), None, None


class _SoftmaxMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, bank: Tensor, temperature: float, budget: int) -> tuple[Tensor, Tensor]:
        lse, mean = kernels.softmax_mean.reference(z, bank, temperature, budget)
        ctx.save_for_backward(z, bank, mean)
        ctx.mark_non_differentiable(mean)
        ctx.temperature, ctx.budget = temperature, budget
        return lse, mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, bank, mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, in which the mean row is no constant
            exact = _full_precision(kernels.softmax_mean.reference)
            mean = exact(z, bank, ctx.temperature, ctx.budget)[1]
        return grads[0][:, None] * mean / ctx.temperature, None, None, None


@kernels.nearest.override("torch")
@_full_precision
def nearest(z: Tensor, bank: Tensor, k: int, budget: int = kernels.BUDGET) -> tuple[Tensor, Tensor]:
    """The search, differentiable in ``z``."""
    scores, indices = apply(_Nearest, z, bank, k, budget)
    return scores, indices


@kernels.scores_at.override("torch")
@_full_precision
def scores_at(z: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """The reference, with a derivative that gathers again instead of keeping (B, k, D)."""
    scores: Tensor = apply(_ScoresAt, z, bank, indices)
    return scores


@kernels.softmax_mean.override("torch")
@_full_precision
def softmax_mean(z: Tensor, bank: Tensor, temperature: float, budget: int = kernels.BUDGET) -> tuple[Tensor, Tensor]:
    """The one pass of the reference, with a derivative that needs no second one."""
    lse, mean = apply(_SoftmaxMean, z, bank, temperature, budget)
    return lse, mean
