"""PyTorch: kernels with their derivatives, the backend, any ``nn.Module`` as an encoder, and a criterion.

encoder = TorchEncoder(module, torch.optim.SGD(parameter_groups(module), lr=0.03, momentum=0.9))   for la_core.train
criterion = LocalAggregation(len(dataset), 128)                                                    for your own loop
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from la_core import kernels, objectives
from la_core.bank import State, random_rows, update
from la_core.clusters import Clustering, cluster
from la_core.errors import BackendError, KindError, NotFiniteError, ShapeError
from la_core.settings import Settings

_P = ParamSpec("_P")
_R = TypeVar("_R")


# Kernels ---------------------------------------------------------------------------------------------------------


def _full_precision(f: Callable[_P, _R]) -> Callable[_P, _R]:
    """Autocast off: the bank, its scores and their log-sums stay in the bank's dtype."""

    @wraps(f)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        kind = next(a.device.type for a in args if isinstance(a, Tensor))
        with torch.autocast(device_type=kind, enabled=False):
            return f(*args, **kwargs)

    return run


kernels.assign.override("torch")(_full_precision(kernels.assign.reference))


@kernels.top_k.override("torch")
def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
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


@kernels.weighted_rows.override("torch")
@_full_precision
def weighted_rows(weights: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """One fused gather and sum: (B, k, D) is never built."""
    total: Tensor = functional.embedding_bag(indices, bank, per_sample_weights=weights, mode="sum")
    return total


def _apply(function: Any, *args: Any) -> Any:
    """``function.apply``, which PyTorch leaves untyped."""
    return function.apply(*args)


class _Nearest(torch.autograd.Function):
    """The search itself has no derivative; the scores it finds have one, and it is a weighted sum of the rows found."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bank: Tensor, k: int, budget: int) -> tuple[Tensor, Tensor]:
        scores, indices = kernels.nearest.reference(z, bank, k, budget)
        ctx.save_for_backward(bank, indices)
        ctx.mark_non_differentiable(indices)
        return scores, indices

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bank, indices = ctx.saved_tensors
        return weighted_rows(grads[0], bank, indices), None, None, None


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
        ctx.save_for_backward(mean)
        ctx.mark_non_differentiable(mean)
        ctx.temperature = temperature
        return lse, mean

    @staticmethod
    @once_differentiable  # the mean row is a constant here
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (mean,) = ctx.saved_tensors
        return grads[0][:, None] * mean / ctx.temperature, None, None, None


@kernels.nearest.override("torch")
@_full_precision
def nearest(z: Tensor, bank: Tensor, k: int, budget: int = kernels.BUDGET) -> tuple[Tensor, Tensor]:
    """The blocked search of the reference, differentiable in ``z``."""
    scores, indices = _apply(_Nearest, z, bank, k, budget)
    return scores, indices


@kernels.scores_at.override("torch")
@_full_precision
def scores_at(z: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """The reference, with a derivative that gathers again instead of keeping (B, k, D)."""
    scores: Tensor = _apply(_ScoresAt, z, bank, indices)
    return scores


@kernels.softmax_mean.override("torch")
@_full_precision
def softmax_mean(z: Tensor, bank: Tensor, temperature: float, budget: int = kernels.BUDGET) -> tuple[Tensor, Tensor]:
    """The one pass of the reference, with a derivative that needs no second one."""
    lse, mean = _apply(_SoftmaxMean, z, bank, temperature, budget)
    return lse, mean


# Backend ---------------------------------------------------------------------------------------------------------


class TorchBackend:
    """PyTorch on one device: ``"cpu"`` (the default), ``"cuda"``, ``"cuda:1"``, ..."""

    name = "torch"

    def __init__(self, device: str | None = None) -> None:
        try:
            self.device = torch.device(device or "cpu")
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise BackendError(f"PyTorch cannot use device {device!r}: {reason}") from None

    def asarray(self, host: np.ndarray) -> Tensor:
        """A copy of ``host`` on the device; the bank is written in place, and the caller's array must not be."""
        return torch.tensor(host, device=self.device)

    def to_host(self, x: Tensor) -> np.ndarray:
        """The numbers of ``x``; bfloat16, which NumPy lacks, as float32."""
        x = x.detach()
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()

    def seed(self, seed: int) -> None:
        """Seed what PyTorch draws itself, such as dropout."""
        torch.manual_seed(seed)


# Encoder ---------------------------------------------------------------------------------------------------------

_NORMALISATION = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def parameter_groups(module: nn.Module, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
    """Parameters in two groups for any torch optimizer: with weight decay, and normalisation layers without.

    The decay is the optimizer's, ``(lambda / 2) ||w||^2``, as in both published codes.
    """
    plain: list[Tensor] = []
    decayed: list[Tensor] = []
    for part in module.modules():
        group = plain if isinstance(part, _NORMALISATION) else decayed
        group.extend(p for p in part.parameters(recurse=False) if p.requires_grad)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer that the settings describe, without weight decay on normalisation layers."""
    groups = parameter_groups(module, settings.weight_decay)
    if settings.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


class TorchEncoder:
    """Any module that maps a batch to (B, D), with any torch optimizer.

    Parameters
    ----------
    module
        Moved to ``device``.
    optimizer
        Holds the module's parameters. Its groups keep the ratios of their learning rates. Without one, the encoder
        can be applied and not trained.
    features
        Name of the submodule whose output counts as the layer before the embedding; by default the last Linear's
        input.
    autocast
        ``torch.bfloat16`` or ``torch.float16`` for mixed precision. The embedding leaves in float32, so that the
        bank and the log-sums never see half precision.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        device: str | torch.device = "cpu",
        features: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.module = module.to(device)
        self.optimizer = optimizer
        self.device = torch.device(device)
        self._autocast = autocast
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=autocast is torch.float16)
        self._ratios = _ratios(optimizer)
        self._features: Tensor | None = None
        self._watch(features)

    def _watch(self, features: str | None) -> None:
        if features is not None:
            parts = dict(self.module.named_modules())
            if features not in parts:
                raise KindError(f"features must name a submodule of the encoder; got {features!r}")
            parts[features].register_forward_hook(lambda module, args, output: self._keep(output))
            return
        linear = [part for part in self.module.modules() if isinstance(part, nn.Linear)]
        if linear:
            linear[-1].register_forward_pre_hook(lambda module, args: self._keep(args[0]))

    def _keep(self, features: Tensor) -> None:
        if not self.module.training:
            self._features = features.flatten(1)

    def _forward(self, batch: Tensor) -> Tensor:
        half = torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()
        with half:
            z: Tensor = self.module(batch)
        if z.ndim != 2:
            raise ShapeError(f"the encoder must map a batch to embeddings (B, D); it gave {tuple(z.shape)}")
        return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z

    def apply(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and features, in evaluation mode, without a graph."""
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                z = self._forward(batch)
            features = z if self._features is None else self._features.float()
        finally:
            self.module.train(training)
            self._features = None
        return z, features

    def pullback(self, batch: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Embeddings without their graph, and the backward pass through it."""
        self.module.train()
        z = self._forward(batch)

        def back(cotangent: Tensor) -> None:
            if self.optimizer is not None:
                self.optimizer.zero_grad(set_to_none=True)
            z.backward(self._scaler.scale(cotangent) if self._scaler.is_enabled() else cotangent)

        return z.detach(), back

    def step(self, learning_rate: float) -> None:
        """One step of the optimizer, its groups scaled to ``learning_rate``."""
        if self.optimizer is None:
            raise BackendError("this TorchEncoder was made without an optimizer, so it cannot be trained")
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = learning_rate * ratio
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def weights(self) -> dict[str, np.ndarray]:
        """The module's ``state_dict`` as NumPy arrays."""
        return {name: x.detach().cpu().numpy().copy() for name, x in self.module.state_dict().items()}

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over weights by name."""
        self.module.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})


def _ratios(optimizer: torch.optim.Optimizer | None) -> list[float]:
    rates = [float(group["lr"]) for group in optimizer.param_groups] if optimizer else []
    return [rate / rates[0] if rates[0] else 1.0 for rate in rates]


# Criterion -------------------------------------------------------------------------------------------------------


class LocalAggregation(nn.Module):
    """The objective for a loop of your own: ``loss = criterion(model(x), indices)``, then ``loss.backward()``.

    It keeps the bank (N, D) and the labels (H, N) as buffers, so both are in ``state_dict``. Until the first
    :meth:`cluster` it is Instance Discrimination, the warm-up; from then on Local Aggregation. In training mode the
    bank rows of the batch are updated after their loss has been differentiated, once for each forward pass; in
    evaluation mode nothing changes.

    Parameters
    ----------
    n_samples, dim
        Size of the data set and width of an embedding.
    n_background
        k; at most ``n_samples``. By default 4096, or all samples if there are fewer.
    temperature, mixing, combine
        As in :func:`la_core.local_aggregation` and :func:`la_core.update`.
    seed
        Of the random unit rows that the bank starts from.
    """

    bank: Tensor
    labels: Tensor

    def __init__(
        self,
        n_samples: int,
        dim: int,
        *,
        n_background: int | None = None,
        temperature: float = 0.07,
        mixing: float = 0.5,
        combine: str = "union",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_background = min(4096, n_samples) if n_background is None else n_background
        self.temperature = temperature
        self.mixing = mixing
        self.combine = combine
        self.n_close: Tensor | None = None
        """(B,) close neighbours of each row of the last batch, within its background; None during the warm-up."""
        self.register_buffer("bank", torch.from_numpy(random_rows(n_samples, dim, seed=seed)))
        self.register_buffer("labels", torch.zeros((0, n_samples), dtype=torch.int32))

    @torch.no_grad()
    def cluster(
        self, *, n_clusters: int | Sequence[int], n_clusterings: int = 3, seed: int = 0, n_iter: int = 20
    ) -> Clustering:
        """Cluster the bank and use the labels from now on. Once an epoch is the paper's habit."""
        result = cluster(self.bank, n_clusters=n_clusters, n_clusterings=n_clusterings, seed=seed, n_iter=n_iter)
        self.labels = result.labels
        return result

    def forward(self, z: Tensor, indices: Tensor) -> Tensor:
        """Mean loss of the batch: embeddings (B, D) as the model gives them, dataset indices (B,) -> scalar."""
        loss: Tensor = _apply(_Criterion, z, indices.to(z.device), self)
        return loss

    def _terms(self, z: Tensor, indices: Tensor) -> objectives.Terms:
        if self.labels.shape[0] == 0:
            return objectives.Terms(
                *objectives.instance_discrimination_and_cotangent(z, self.bank, indices, temperature=self.temperature)
            )
        return objectives.local_aggregation_terms(
            z,
            State(self.bank, self.labels),
            indices,
            n_background=self.n_background,
            temperature=self.temperature,
            combine=self.combine,
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The number of clusterings is data, not architecture: take the saved one.
        saved = state_dict.get(prefix + "labels")
        if isinstance(saved, Tensor) and saved.ndim == 2:
            self.labels = self.labels.new_zeros((saved.shape[0], self.labels.shape[1]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What ``print(criterion)`` shows."""
        return (
            f"n_samples={self.bank.shape[0]}, dim={self.bank.shape[1]}, n_background={self.n_background}, "
            f"temperature={self.temperature}, mixing={self.mixing}, combine={self.combine!r}"
        )


class _Criterion(torch.autograd.Function):
    """The closed-form cotangent as a node of the graph; the bank moves when the node has been used."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, indices: Tensor, criterion: LocalAggregation) -> Tensor:
        # Half precision is left before the cotangent, so that a loss scaler's factor meets it in full.
        terms = criterion._terms(z.to(criterion.bank.dtype), indices)
        criterion.n_close = terms.n_close
        ctx.dtype = z.dtype
        ctx.save_for_backward(terms.cotangent)
        ctx.pending = (criterion, z.detach(), indices) if criterion.training else None
        loss: Tensor = terms.loss.mean()
        return loss

    @staticmethod
    @once_differentiable  # the cotangent is a constant here
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,) = ctx.saved_tensors
        if ctx.pending is not None:
            criterion, z, indices = ctx.pending
            ctx.pending = None
            state = State(criterion.bank)
            criterion.bank = update(state, indices, z, mixing=criterion.mixing).bank
        return (grads[0] * cotangent).to(ctx.dtype), None, None
