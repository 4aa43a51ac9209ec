"""A linear classifier on frozen features, by scikit-learn on the host: what can be read off them by a hyperplane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from la_core import check, kernels
from la_core.errors import BackendError, RangeError, ShapeError
from la_core.evaluate.host import integers, matrix
from la_core.kernels import BUDGET
from la_core.randomness import derived_seed, generator

METHODS = ("lbfgs", "sgd")
WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
FIFTHS = 5
"""Parts of the training samples, class by class; each in turn is held out to choose the weight decay."""
ENOUGH = 10_000
"""Held-out samples after which no further part is: noise is small then, and fits take long."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe and how it was come by."""

    accuracy: float
    interval: tuple[float, float]
    """95 % of the accuracies that other test sets of this size would give (bootstrap percentiles)."""
    predicted: np.ndarray
    """(Q,) class of each test sample."""
    weight_decay: float
    """The one that was chosen."""
    held_out: dict[float, float]
    """Mean cross-entropy of held-out training samples by weight decay; empty where there was no choice."""
    method: str
    n_train: int

    @property
    def c(self) -> float:
        """The same as scikit-learn's C, which weighs the sum of the losses: 1 / (weight_decay N)."""
        return 1.0 / (self.weight_decay * self.n_train)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"linear probe ({self.method}) {self.accuracy:.1%}, 95 % interval {low:.1%} to {high:.1%}: "
            f"{len(self.predicted)} test samples, {self.n_train} training samples, weight decay {self.weight_decay:g}"
        )


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    method: str = "lbfgs",
    standardise: bool = True,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Probe:
    """Fit a linear classifier to frozen training features, and test it.

    It minimises the mean loss plus (weight_decay / 2) ||W||^2. The weight decay is chosen by cross-entropy of training
    samples that are held out, each fifth in turn, class by class, until there are 10 000: the largest that is not worse
    than the best by more than a standard error of their difference (the rule of Breiman et al. 1984, paired). One fifth
    alone would choose by its noise, too small a decay as often as not. The fit is then to all; test samples choose
    nothing.

    Parameters
    ----------
    train_features, test_features
        (N, F) and (Q, F) float, on the host.
    train_labels, test_labels
        (N,) and (Q,) integers, on the host; at least two classes in training.
    method
        ``"lbfgs"``: multinomial logistic regression, to convergence. ``"sgd"``: one logistic regression for each class
        against the rest by stochastic gradient with a constant rate, 1 / mean ||x||^2, and averaged weights (Bach and
        Moulines 2013), for many samples.
    standardise
        Shift and scale each feature by mean and deviation of the training samples. Copies both sides.
    weight_decays
        To choose from, each above 0. One alone is taken as it is, and nothing is held out.
    bootstrap
        Draws behind the interval.
    seed
        Of the fifths, of stochastic gradient and of the bootstrap.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    BackendError
        scikit-learn is not installed.
    """
    x, test_x = matrix("train_features", train_features), matrix("test_features", test_features)
    if test_x.shape[1] != x.shape[1]:
        raise ShapeError(f"test_features must have {x.shape[1]} columns, as train_features; got {test_x.shape[1]}")
    y = integers("train_labels", train_labels, len(x), "row of train_features")
    test_y = integers("test_labels", test_labels, len(test_x), "row of test_features")
    if y.min() == y.max():
        raise RangeError(f"train_labels must hold at least two classes; all are {y[0]}")
    check.choice("method", method, METHODS)
    if not len(weight_decays):
        raise ShapeError("weight_decays must have at least one value")
    decays = sorted((check.number("each of weight_decays", d, 0.0, open_low=True) for d in weight_decays), reverse=True)
    check.count("bootstrap", bootstrap)
    check.count("seed", seed, least=0)
    part = _fifths(y, seed)
    if len(decays) > 1 and (part < 0).all():
        raise RangeError(
            f"no class of train_labels has {FIFTHS} samples, so none can be held out to choose among weight_decays: "
            "give one value"
        )
    fit = _fitter(method, derived_seed(seed, "probe"))

    if standardise:
        mean, scale = _standard(x)
        x, test_x = (x - mean) * scale, (test_x - mean) * scale
    held_out: dict[float, float] = {}
    decay = decays[0]
    if len(decays) > 1:
        losses = _held_out_losses(fit, x, y, decays, part)
        held_out = dict(zip(decays, losses.mean(axis=1).tolist(), strict=True))
        decay = decays[_strongest(losses)]
    predicted = fit(x, y, decay).predict(test_x)
    accuracy = float((predicted == test_y).mean())
    between = interval(accuracy, len(test_y), bootstrap, seed)
    return Probe(accuracy, between, predicted, decay, held_out, method, len(y))


def interval(accuracy: float, n: int, draws: int, seed: int) -> tuple[float, float]:
    """The middle 95 % of the accuracies of so many bootstrap draws of ``n`` test samples.

    Of samples that are each right or wrong, the mean of a draw with replacement is binomial: no need to draw samples.
    """
    found = generator(seed, "bootstrap").binomial(n, accuracy, size=draws) / n
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def _fifths(y: np.ndarray, seed: int) -> np.ndarray:
    """(N,) which fifth each sample is in, class by class in random order; -1 in a class that has not one for each."""
    order = generator(seed, "held out").permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]  # class by class
    _, starts, counts = np.unique(y[order], return_index=True, return_counts=True)
    rank = np.arange(len(y)) - np.repeat(starts, counts)
    part = np.empty(len(y), dtype=np.int64)
    part[order] = np.where(np.repeat(counts, counts) >= FIFTHS, rank % FIFTHS, -1)
    return part


def _held_out_losses(
    fit: Callable[[np.ndarray, np.ndarray, float], Any],
    x: np.ndarray,
    y: np.ndarray,
    decays: Sequence[float],
    part: np.ndarray,
) -> np.ndarray:
    """(decays, M) cross-entropy of the same M held-out samples at each decay."""

    def of(apart: np.ndarray) -> np.ndarray:
        kept, kept_y, asked, asked_y = x[~apart], y[~apart], x[apart], y[apart]
        return np.stack([_cross_entropies(fit(kept, kept_y, decay), asked, asked_y) for decay in decays])

    found: list[np.ndarray] = []
    for fifth in range(FIFTHS):
        found.append(of(part == fifth))
        if sum(losses.shape[1] for losses in found) >= ENOUGH:
            break
    return np.concatenate(found, axis=1)


def _strongest(losses: np.ndarray) -> int:
    """The first row (rows, M) whose mean is not above the least one by more than a standard error of the difference."""
    more = losses - losses[losses.mean(axis=1).argmin()]
    return int(np.argmax(more.mean(axis=1) <= more.std(axis=1) / np.sqrt(losses.shape[1])))


def _standard(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / deviation of each column, at least float32; 0 for a column of equals, which tells nothing."""
    mean = x.mean(axis=0, dtype=np.float64)
    square = sum(np.square(x[some] - mean).sum(axis=0) for some in kernels.blocks(len(x), BUDGET // (16 * x.shape[1])))
    deviation = np.sqrt(square / len(x))
    varies = (x.min(axis=0) < x.max(axis=0)) & (deviation > 0)
    scale = np.divide(1.0, deviation, where=varies, out=np.zeros_like(deviation))
    dtype = np.result_type(x, np.float32)
    return mean.astype(dtype), scale.astype(dtype)


def _cross_entropies(model: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(M,) of classes that the model knows. Steadier than accuracy, which a few samples decide."""
    shares = model.predict_proba(x)[np.arange(len(y)), np.searchsorted(model.classes_, y)].astype(np.float64)
    losses: np.ndarray = -np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    return losses


def _fitter(method: str, seed: int) -> Callable[[np.ndarray, np.ndarray, float], Any]:
    try:
        from sklearn.linear_model import LogisticRegression, SGDClassifier
    except ImportError:
        raise BackendError("a linear probe needs scikit-learn, not installed: pip install 'la-core[demo]'") from None

    def fit(x: np.ndarray, y: np.ndarray, weight_decay: float) -> Any:
        if method == "lbfgs":
            return LogisticRegression(C=1.0 / (weight_decay * len(y)), max_iter=5000).fit(x, y)
        square = float(np.vecdot(x, x, dtype=np.result_type(x, np.float32)).mean(dtype=np.float64))
        return SGDClassifier(
            loss="log_loss",
            alpha=weight_decay,
            learning_rate="constant",
            eta0=1.0 / square if square else 1.0,  # scikit-learn's own rate diverges where the weight decay is small
            average=True,
            tol=1e-4,
            random_state=seed,
        ).fit(x, y)

    return fit
