"""Local Aggregation as a module, for a training loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from la_core import check, kernels, objectives
from la_core.backends.torch.kernels import apply
from la_core.backends.torch.small import by_numpy
from la_core.bank import State, random_rows, update
from la_core.clusters import TOLERANCE, Clustering, cluster
from la_core.errors import BackendError, ShapeError
from la_core.neighbours import COMBINATIONS

Objective: TypeAlias = Callable[[Tensor, State, Tensor], objectives.Terms]


class LocalAggregation(nn.Module):
    """The objective for a loop of your own: ``loss = criterion(model(x), indices)``, then ``loss.backward()``.

    It keeps the bank (N, D) and the labels (H, N) as buffers, so both are in ``state_dict``. Until the first
    :meth:`cluster` it is Instance Discrimination, the warm-up; from then on Local Aggregation. Labels of your own,
    (H, N) integers, can be assigned to ``criterion.labels`` instead. In training mode the bank rows of the batch are
    updated after their loss has been differentiated, once for each forward pass; in evaluation mode nothing changes.

    With two views of each sample, ``criterion(model(torch.cat([x, y])), indices)``, each view reads a bank in which the
    other is its sample's row (:func:`la_core.objectives.fresh_rows`), and the warm-up is the softmax over the other
    views of the batch.

    Parameters
    ----------
    n_samples, dim
        Size of the data set and width of an embedding.
    n_background
        k; at most ``n_samples``. By default 4096, or all samples if there are fewer.
    temperature, mixing, combine
        As in :func:`la_core.local_aggregation` and :func:`la_core.update`.
    instance_weight
        Share of Instance Discrimination within the batch in the loss after the first :meth:`cluster`, as in
        :func:`la_core.objectives.with_instances`; it needs two views of each sample.
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
        instance_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        wanted = min(4096, n_samples) if n_background is None else n_background
        self.n_background = check.count("n_background", wanted, n_samples, "the number of samples")
        self.temperature = check.temperature(temperature)
        self.mixing = check.number("mixing", mixing, 0.0, 1.0)
        self.combine = check.choice("combine", combine, COMBINATIONS)
        self.instance_weight = check.number("instance_weight", instance_weight, 0.0, 1.0)
        self.n_close: Tensor | None = None
        """Close neighbours of each row of the last batch, within its background; None during the warm-up."""
        self.register_buffer("bank", torch.from_numpy(random_rows(n_samples, dim, seed=seed)))
        self.register_buffer("labels", torch.zeros((0, n_samples), dtype=torch.int32))

    @torch.no_grad()
    def cluster(
        self,
        *,
        n_clusters: int | Sequence[int],
        n_clusterings: int = 3,
        seed: int = 0,
        n_iter: int = 20,
        tolerance: float = TOLERANCE,
    ) -> Clustering:
        """Cluster the bank and use the labels from now on. Once an epoch is the paper's habit."""
        result = cluster(
            self.bank,
            n_clusters=n_clusters,
            n_clusterings=n_clusterings,
            seed=seed,
            n_iter=n_iter,
            tolerance=tolerance,
        )
        self.labels = result.labels
        return result

    # It asks how large a batch is, and moves the bank: a graph must not keep the answers.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, z: Tensor, indices: Tensor) -> Tensor:
        """Mean loss of the batch: embeddings as the model gives them, dataset indices (B,) -> scalar.

        The embeddings are (B, D) or, of two views, (2 B, D): all first views, then all second ones. ``torch.compile``
        leaves it as it is, in a graph break.
        """
        loss: Tensor = apply(_Criterion, z, indices.to(z.device), self)
        return loss

    def _terms(self, z: Tensor, indices: Tensor) -> objectives.Terms:
        warm = self.labels.shape[0] == 0
        state = State(self.bank, None if warm else self.labels)
        objective: Objective = self._discriminate if warm else self._aggregate
        two = z.shape[0] == 2 * indices.shape[0]
        if self.instance_weight and not warm:
            if not two:
                raise ShapeError(
                    f"instance_weight compares two views: give 2 x {indices.shape[0]} embeddings for "
                    f"{indices.shape[0]} indices; got {z.shape[0]}"
                )
            objective = objectives.with_instances(objective, self.instance_weight, self.temperature)
        if not two:
            return by_numpy(objective)(z, state, indices)
        if warm:
            check.indices("indices", indices, (None,), self.bank.shape[0])
            state = State(self.bank[indices])
            indices = torch.arange(indices.shape[0], device=indices.device)
        return by_numpy(partial(objectives.fresh_rows, objective))(z, state, indices)[0]

    def _discriminate(self, z: Tensor, state: State, indices: Tensor) -> objectives.Terms:
        return objectives.Terms(
            *objectives.instance_discrimination_and_cotangent(z, state.bank, indices, temperature=self.temperature)
        )

    def _aggregate(self, z: Tensor, state: State, indices: Tensor) -> objectives.Terms:
        return objectives.local_aggregation_terms(
            z,
            state,
            indices,
            n_background=self.n_background,
            temperature=self.temperature,
            combine=self.combine,
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The number of clusterings is data, not architecture: take the saved one.
        saved = state_dict.get(prefix + "labels")
        if isinstance(saved, Tensor) and saved.ndim == 2 and saved.shape[1] == self.labels.shape[1]:
            self.labels = self.labels.new_zeros(saved.shape, dtype=saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What ``print(criterion)`` shows."""
        return (
            f"n_samples={self.bank.shape[0]}, dim={self.bank.shape[1]}, n_background={self.n_background}, "
            f"temperature={self.temperature}, mixing={self.mixing}, combine={self.combine!r}, "
            f"instance_weight={self.instance_weight}"
        )


class _Criterion(torch.autograd.Function):
    """The closed-form cotangent as a node of the graph; the bank moves when the node has been used."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, indices: Tensor, criterion: LocalAggregation) -> Tensor:
        check.matrix("z", z, "B")
        if indices.ndim != 1:
            check.indices("indices", indices, (None,), criterion.bank.shape[0])
        # Half precision is left before the cotangent, so that a loss scaler's factor meets it in full.
        terms = criterion._terms(kernels.like(z, criterion.bank), indices)
        criterion.n_close = terms.n_close
        ctx.dtype = z.dtype
        ctx.save_for_backward(terms.cotangent)
        ctx.pending = (criterion, z.detach(), indices) if criterion.training else None
        loss: Tensor = terms.loss.mean()
        return loss

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise BackendError(
                "the criterion's derivative is a constant: for a second one (create_graph=True) take "
                "la_core.local_aggregation or la_core.instance_discrimination, which PyTorch differentiates"
            )
        (cotangent,) = ctx.saved_tensors
        if ctx.pending is not None:
            criterion, z, indices = ctx.pending
            ctx.pending = None
            every = indices.repeat(z.shape[0] // indices.shape[0])
            criterion.bank = by_numpy(update)(State(criterion.bank), every, z, mixing=criterion.mixing).bank
            torch.autograd.graph.increment_version(criterion.bank)  # a graph that holds it cannot see NumPy write
        return (grads[0] * cotangent).to(ctx.dtype), None, None
