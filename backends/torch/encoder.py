"""Any ``nn.Module`` with any torch optimizer, as an encoder of ``la_core.train``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from la_core.errors import BackendError, KindError, NotFiniteError, ShapeError
from la_core.export import fit
from la_core.settings import Settings

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
        Name of the submodule whose output counts as the layer before the embedding. By default it is the input of the
        module's ``head``, if it has one, or of its last Linear.
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
        self._buffers: list[Tensor] = []
        self._watch(features)

    def _watch(self, features: str | None) -> None:
        if features is not None:
            self._part("features", features).register_forward_hook(lambda module, args, output: self._keep(output))
            return
        head = getattr(self.module, "head", None)
        linear = [part for part in self.module.modules() if isinstance(part, nn.Linear)]
        last = [head] if isinstance(head, nn.Module) else linear[-1:]
        if last:
            last[0].register_forward_pre_hook(lambda module, args: self._keep(args[0]))

    def _part(self, argument: str, name: str) -> nn.Module:
        parts: dict[str, nn.Module] = dict(self.module.named_modules())
        if name not in parts:
            raise KindError(f"{argument} must name submodules of the encoder; got {name!r}")
        return parts[name]

    def _keep(self, features: Tensor) -> None:
        if not self.module.training:
            self._features = _kept(features).flatten(1)

    def _forward(self, batch: Tensor) -> Tensor:
        half = torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()
        with half:
            z: Tensor = self.module(batch)
        if z.ndim != 2:
            raise ShapeError(f"the encoder must map a batch to embeddings (B, D); it gave {tuple(z.shape)}")
        return _widened(z)

    def apply(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and features, in evaluation mode, without a graph."""
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                z = self._forward(batch)
            features = z if self._features is None else self._features
        finally:
            self.module.train(training)
            self._features = None
        return z, features

    def layers(self, batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of submodules by name, (B, C, H, W) or (B, F), in evaluation mode, without a graph.

        Raises
        ------
        KindError
            A name that is no submodule's, or a submodule that took no part.
        """
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, args, output: kept.update({name: _kept(output)})

        parts = {name: self._part("names", name) for name in names}
        hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
        try:
            self.apply(batch)
        finally:
            for hook in hooks:
                hook.remove()
        if len(kept) < len(parts):
            raise KindError(f"these submodules took no part in the embedding: {sorted(set(parts) - set(kept))}")
        return {name: kept[name] for name in parts}

    def pullback(self, batch: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Embeddings without their graph, and the backward pass through it."""
        self.module.train()
        self._buffers = [x.clone() for x in self.module.buffers()]
        z = self._forward(batch)

        def back(cotangent: Tensor) -> None:
            if self.optimizer is not None:
                self.optimizer.zero_grad(set_to_none=True)
            z.backward(self._scaler.scale(cotangent) if self._scaler.is_enabled() else cotangent)

        return z.detach(), back

    def sum_gradients(self, all_sum: Callable[[Tensor], Tensor]) -> None:
        """The gradients of the last ``back``, added up over all processes, in one vector.

        A batch norm normalises the rows of its own process; running statistics become the mean over all.
        """
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        running = [x for name, x in self.module.named_buffers() if name.rpartition(".")[2].startswith("running_")]
        one = torch.ones(1, device=self.device)  # becomes the number of processes
        total = _split(all_sum(_flat([*grads, used, *running, one])), [*grads, used, *running, one])
        used, count = total[len(grads)], total[-1]
        for p, grad, some in zip(parameters, total, used.tolist(), strict=False):
            p.grad = grad.to(p.dtype) if some else None  # an optimizer leaves alone what nobody used
        for x, mean in zip(running, total[len(grads) + 1 :], strict=False):
            x.copy_(mean / count)

    def step(self, learning_rate: float) -> None:
        """One step of the optimizer, its groups scaled to ``learning_rate``.

        With float16 the scaler leaves out a step whose scaled gradients overflow, and lowers its scale.

        Raises
        ------
        NotFiniteError
            Otherwise, where a gradient holds NaN or infinity: names the first. Nothing has moved.
        """
        if self.optimizer is None:
            raise BackendError("this TorchEncoder was made without an optimizer, so it cannot be trained")
        if not self._scaler.is_enabled():
            self._refuse_what_is_not_finite(self.optimizer)
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = learning_rate * ratio
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def revert(self) -> None:
        """Put running statistics, and whatever else are buffers, where they were before the last :meth:`pullback`."""
        with torch.no_grad():
            for x, before in zip(self.module.buffers(), self._buffers, strict=True):
                x.copy_(before)

    def _refuse_what_is_not_finite(self, optimizer: torch.optim.Optimizer) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in moved]
        if not gradients or bool(get_total_norm(gradients, math.inf).isfinite()):
            return
        names = {id(p): name for name, p in self.module.named_parameters()}
        bad = next(p for p, x in zip(moved, gradients, strict=True) if not bool(x.isfinite().all()))
        raise NotFiniteError(f"the gradient of {names.get(id(bad), 'a parameter')} holds NaN or infinity")

    def weights(self) -> dict[str, np.ndarray]:
        """The module's ``state_dict`` as NumPy arrays; bfloat16, which NumPy does not have, as float32."""
        state = self.module.state_dict().items()
        return {name: (x.float() if x.dtype is torch.bfloat16 else x).cpu().numpy().copy() for name, x in state}

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over weights by name."""
        self.module.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})

    def training_state(self) -> dict[str, np.ndarray]:
        """What the optimizer keeps for each parameter, the scaler of float16, and where PyTorch's generators stand.

        Names begin with the optimizer's class: ``SGD.0.momentum_buffer``, ``AdamW.3.exp_avg``.

        Raises
        ------
        KindError
            An optimizer that keeps more than tensors and numbers for a parameter.
        """
        state = {"generator.cpu": torch.get_rng_state().numpy().copy()}
        if self.device.type == "cuda":
            state["generator.cuda"] = torch.cuda.get_rng_state(self.device).numpy().copy()
        if self._scaler.is_enabled():
            numbers = self._scaler.state_dict()
            state |= {f"scaler.{name}": np.array(numbers[name]) for name in _SCALER}
        if self.optimizer is not None:
            kind = type(self.optimizer).__name__
            for place, kept in self.optimizer.state_dict()["state"].items():
                for name, x in kept.items():
                    if x is None:
                        continue
                    if not isinstance(x, Tensor | int | float):
                        raise KindError(f"{kind} keeps a {type(x).__name__} ({name}), which a checkpoint cannot hold")
                    array = _widened(x.detach()).cpu().numpy().copy() if isinstance(x, Tensor) else np.array(x)
                    state[f"{kind}.{place}.{name}" + ("" if isinstance(x, Tensor) else _NUMBER)] = array
        return state

    def load_training_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`training_state` gave, of the same optimizer on the same parameters.

        Raises
        ------
        KindError
            Of another optimizer, or of another number of parameters: nothing is changed then.
        """
        kept: dict[int, dict[str, Any]] = {}
        kind = type(self.optimizer).__name__
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        parameters = [p for group in groups for p in group["params"]]
        for name, x in state.items():
            first, place, rest = (*name.split(".", 2), "", "")[:3]
            if first in ("generator", "scaler"):
                continue
            if first != kind or not place.isdecimal() or int(place) >= len(parameters):
                raise KindError(f"this encoder has {kind} on {len(parameters)} parameters; got {name}")
            number = rest.endswith(_NUMBER)
            value = x.item() if number else _beside(parameters[int(place)], x)
            kept.setdefault(int(place), {})[rest.removesuffix(_NUMBER)] = value
        if self.optimizer is not None:
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        if self._scaler.is_enabled() and f"scaler.{_SCALER[0]}" in state:
            given = {name: state[f"scaler.{name}"].item() for name in _SCALER}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **given})
        if "generator.cpu" in state:
            torch.set_rng_state(torch.tensor(state["generator.cpu"]))
        if "generator.cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(torch.tensor(state["generator.cuda"]), self.device)

    def torch_weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights that :mod:`la_core.export` writes: all but the counters of batch norm."""
        return {name: x for name, x in self.weights().items() if not name.endswith("num_batches_tracked")}

    def load_torch_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`torch_weights` of an encoder on any library gave; a head left out stays as it is.

        Raises
        ------
        KindError, ShapeError
            Names that are missing or unknown, or another shape: nothing is changed then.
        """
        fit(self.torch_weights(), weights, "what was given")
        self.load(self.weights() | dict(weights))

    @property
    def network(self) -> str:
        """The name of the module's class."""
        return type(self.module).__name__


_NUMBER = ".number"  # of a plain number that the optimizer keeps, which must not come back as a tensor
_SCALER = ("scale", "_growth_tracker")


def _flat(xs: Sequence[Tensor]) -> Tensor:
    wide = torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32
    return torch.cat([x.detach().reshape(-1).to(wide) for x in xs])


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of :func:`_flat`, each laid out as it was."""
    parts = flat.split([x.numel() for x in like])
    return [
        torch.empty_like(x, dtype=flat.dtype).copy_(part.view(x.shape)) for x, part in zip(like, parts, strict=True)
    ]


def _beside(parameter: Tensor, x: np.ndarray) -> Tensor:
    """A tensor laid out in memory as the parameter is: an optimizer's sums differ in their last bits otherwise."""
    given = torch.tensor(x)
    return torch.empty_like(parameter, dtype=given.dtype).copy_(given) if given.shape == parameter.shape else given


def _kept(x: Tensor) -> Tensor:
    """A copy, which a following layer in place does not reach."""
    return _widened(x.detach().clone())


def _widened(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _ratios(optimizer: torch.optim.Optimizer | None) -> list[float]:
    rates = [float(group["lr"]) for group in optimizer.param_groups] if optimizer else []
    return [rate / rates[0] if rates[0] else 1.0 for rate in rates]
