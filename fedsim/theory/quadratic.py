"""Expected training on quadratics: losses and mean weights after each round, exact up to rounding.

Device k has F_k(w) = 1/2 (w - o_k)' H_k (w - o_k), and a local step is w - rate (H_k (w - o_k) + noise), noise
independent of everything, mean 0, covariance Sigma_k. Then a round is a random affine map that is independent of w,
    w+ = w + sum_k W_k * (A_k w + b_k + n_k - w),      W_k: the weight of device k in each layer, random,
so mean and second moment close exactly: they need no more than E[W_k,i] and E[W_k,i W_j,l].
With tau local steps A_k = (I - rate H_k)^tau, and the mean of local SGD settles where sum_k (I - A_k) (w - o_k) = 0: not
the minimiser unless tau = 1 or the Hessians agree (Malinovskiy et al., ICML 2020, arXiv 2004.01442: fixed points of local
methods; Charles and Konecny, AISTATS 2021, arXiv 2103.05032).

Knows nothing of time; quadratic_clock turns rounds into seconds where the two are independent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from fedsim.facts import Array, BoolArray, IntArray
from fedsim.protocols import NoClosedForm


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Least squares, one problem per device.

    hessian: H_k, `[device, parameter, parameter]`, symmetric. optimum: o_k, `[device, parameter]`.
    noise: covariance of one step's gradient noise, `[device, parameter, parameter]`.
    layer_of: layer of each parameter from 0, the input-most, `[parameter]`. start: weights before the first round.
    rate: learning rate.
    """

    hessian: Array
    optimum: Array
    noise: Array
    layer_of: IntArray
    start: Array
    rate: float

    def __post_init__(self) -> None:
        m, p = self.optimum.shape
        expected = {"hessian": (m, p, p), "noise": (m, p, p), "layer_of": (p,), "start": (p,)}
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} has shape {found}, but the optimum {(m, p)} asks for {shape}")
        if not np.allclose(
            self.hessian, self.hessian.transpose(0, 2, 1), rtol=0, atol=1e-9 * np.abs(self.hessian).max()
        ):
            raise ValueError("a Hessian is not symmetric; hand over A'A")

    @classmethod
    def of(
        cls,
        n_devices: int,
        hessian: Array,
        *,
        start: Array,
        rate: float,
        optimum: Array | float = 0.0,
        noise: Array | float = 0.0,
        layer_of: IntArray | None = None,
    ) -> Quadratic:
        """What is given without a device axis holds for every device; a number as noise is a variance per parameter."""
        p = len(start)
        covariance = np.asarray(noise) * np.eye(p) if np.ndim(noise) == 0 else np.asarray(noise)
        return cls(
            hessian=np.broadcast_to(np.asarray(hessian, dtype=np.float64), (n_devices, p, p)),
            optimum=np.broadcast_to(np.asarray(optimum, dtype=np.float64), (n_devices, p)),
            noise=np.broadcast_to(covariance, (n_devices, p, p)),
            layer_of=np.zeros(p, dtype=np.int64) if layer_of is None else np.asarray(layer_of),
            start=np.asarray(start, dtype=np.float64),
            rate=rate,
        )

    @property
    def n_devices(self) -> int:
        return len(self.hessian)

    @property
    def n_layers(self) -> int:
        return int(self.layer_of.max()) + 1

    @cached_property
    def minimiser(self) -> Array:
        """Where the mean of the devices' losses is least, `[parameter]`; the shortest such weights if there are many."""
        pull = np.einsum("kij,kj->i", self.hessian, self.optimum)
        return np.asarray(np.linalg.lstsq(self.hessian.sum(axis=0), pull, rcond=None)[0])

    @cached_property
    def centred(self) -> Quadratic:
        """The same problem with its minimiser at 0, where second moments lose no digits."""
        return replace(self, optimum=self.optimum - self.minimiser, start=self.start - self.minimiser)

    def loss(self, weights: Array) -> Array:
        """Mean over devices of F_k, `[...]`, at weights `[..., parameter]`; not 0 at the minimiser if optima differ."""
        apart = weights[..., None, :] - self.optimum
        return np.asarray(0.5 * np.einsum("...ki,kij,...kj->...", apart, self.hessian, apart) / self.n_devices)

    def expected_loss(self, mean: Array, second_moment: Array) -> float:
        """Expected loss of random weights w from E[w] and E[ww']."""
        pull = np.einsum("kij,kj->i", self.hessian, self.optimum)
        at_zero = float(np.einsum("ki,kij,kj->", self.optimum, self.hessian, self.optimum))
        quadratic = float(np.sum(self.hessian.sum(axis=0) * second_moment))
        return (0.5 * (quadratic + at_zero) - float(pull @ mean)) / self.n_devices

    def common_hessian(self) -> Array:
        """The Hessian of every device, `[parameter, parameter]`; raises NoClosedForm if they differ."""
        if not np.allclose(self.hessian, self.hessian[0], rtol=1e-12, atol=1e-12 * float(np.abs(self.hessian).max())):
            raise NoClosedForm("needs the same Hessian on every device; got different ones")
        return np.asarray(self.hessian[0])


# ---- what a device does ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LocalMap:
    """What local steps make of weights: w -> matrix w + offset + noise.

    matrix: `[device, parameter, parameter]`. offset: `[device, parameter]`.
    noise: covariance, `[device, parameter, parameter]`.
    """

    matrix: Array
    offset: Array
    noise: Array


def local_map(problem: Quadratic, n_steps: int | IntArray, trained: BoolArray | None = None) -> LocalMap:
    """`n_steps` steps of SGD, of every device or `[device]`; only `trained` parameters move, `[device, parameter]`, or all."""
    m, p = problem.optimum.shape
    moves = np.ones((m, p)) if trained is None else trained.astype(np.float64)
    step = np.eye(p) - problem.rate * moves[:, :, None] * problem.hessian
    pull = problem.rate * moves * np.einsum("kij,kj->ki", problem.hessian, problem.optimum)
    step_noise = problem.rate**2 * moves[:, :, None] * moves[:, None, :] * problem.noise
    matrix, offset, noise = np.tile(np.eye(p), (m, 1, 1)), np.zeros((m, p)), np.zeros((m, p, p))
    wanted = np.broadcast_to(np.asarray(n_steps), (m,))
    for done in range(int(wanted.max())):
        on = done < wanted
        matrix[on] = step[on] @ matrix[on]
        offset[on] = np.einsum("kij,kj->ki", step[on], offset[on]) + pull[on]
        noise[on] = step[on] @ noise[on] @ step[on].transpose(0, 2, 1) + step_noise[on]
    return LocalMap(matrix, offset, noise)


# ---- what the server does -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WeightMoments:
    """Moments of a random weight table W[device, layer], 0 where a device contributes nothing.

    mean: E[W_k,i], `[device, layer]`. second: E[W_k,i W_j,l], `[device k, device j, layer i, layer l]`.
    """

    mean: Array
    second: Array

    def scaled(self, factor: Array) -> WeightMoments:
        """Moments of factor * W, `[device, layer]` or `[layer]`."""
        each = np.broadcast_to(factor, self.mean.shape)
        return WeightMoments(self.mean * each, self.second * each[:, None, :, None] * each[None, :, None, :])


@dataclass(frozen=True)
class Steady:
    """Where a curve settles: its expected loss, and the mean weights, `[parameter]`."""

    loss: float
    mean: Array


class Round(Protocol):
    """One round's effect on the moments of the weights."""

    def steady(self) -> Steady:
        """Where repeating the round settles; raises NoClosedForm if it does not."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Expectations after 0, 1, ... rounds.

    loss: `[round]`. mean: expected weights, `[round, parameter]`. round: the round that is repeated.
    """

    loss: Array
    mean: Array
    round: Round


@dataclass(frozen=True, eq=False)
class AffineRound:
    """w+ = w + sum_k W_k * (local_k(w) - w), the same independent law of W in every round.

    local: of `problem.centred`.
    """

    problem: Quadratic
    local: LocalMap
    weights: WeightMoments

    @cached_property
    def _change(self) -> Array:
        """local_k(w) - w without its noise, as a matrix on (w, 1), `[device, parameter, parameter + 1]`."""
        change = self.local.matrix - np.eye(self.local.matrix.shape[1])
        return np.concatenate([change, self.local.offset[:, :, None]], axis=2)

    @cached_property
    def _mean_change(self) -> Array:
        mean_weights = self.weights.mean[:, self.problem.layer_of]
        return np.asarray(np.einsum("ki,kij->ij", mean_weights, self._change))

    @cached_property
    def _pair_weights(self) -> Array:
        """`[device, parameter, device, parameter]`."""
        layer_of = self.problem.layer_of
        expanded = self.weights.second[:, :, layer_of[:, None], layer_of[None, :]]
        return np.ascontiguousarray(expanded.transpose(0, 2, 1, 3))

    @cached_property
    def _noise(self) -> Array:
        return np.asarray(np.einsum("kikj,kij->ij", self._pair_weights, self.local.noise))

    def after(self, moments: Array) -> Array:
        """E[zz'] of z = (w, 1) after the round, `[parameter + 1, parameter + 1]`, from the one before it."""
        m, p, _ = self._change.shape
        flat = self._change.reshape(m * p, p + 1)
        products = (flat @ moments @ flat.T).reshape(m, p, m, p)
        # Both sides by themselves: with a transposed copy, a rounding error that is not symmetric would grow.
        cross = moments[:p] @ self._mean_change.T + self._mean_change @ moments[:, :p]
        found = moments.copy()
        found[:p, :p] += cross + np.einsum("kilj,kilj->ij", self._pair_weights, products) + self._noise
        found[:p, p] = found[p, :p] = moments[:p, p] + self._mean_change @ moments[:, p]
        return found

    def curve(self, n_rounds: int) -> Curve:
        """Expectations after 0 ... n_rounds rounds."""
        problem = self.problem.centred
        p = len(problem.start)
        with_one = np.append(problem.start, 1.0)
        moments = np.outer(with_one, with_one)
        losses, means = [], []
        with np.errstate(over="ignore", invalid="ignore"):
            for n in range(n_rounds + 1):
                moments = self.after(moments) if n else moments
                if not np.isfinite(moments).all():
                    raise NoClosedForm(f"needs second moments that floats can hold; they overflow in round {n}")
                losses.append(problem.expected_loss(moments[:p, p], moments[:p, :p]))
                means.append(moments[:p, p] + self.problem.minimiser)
        return Curve(np.array(losses), np.array(means), self)

    def steady(self) -> Steady:
        p = len(self.problem.start)
        mean_map = np.eye(p) + self._mean_change[:, :p]
        # `after` is affine in the second moments: its linear part comes from one symmetric unit matrix after the other.
        upper = np.triu_indices(p)
        units = np.zeros((len(upper[0]), p + 1, p + 1))
        units[np.arange(len(units)), upper[0], upper[1]] = units[np.arange(len(units)), upper[1], upper[0]] = 1.0
        second_map = np.stack([(self.after(unit)[:p, :p] - self._noise)[upper] for unit in units], axis=1)
        refuse_growth(max(_radius(mean_map), _radius(second_map)))
        mean = np.asarray(np.linalg.solve(np.eye(p) - mean_map, self._mean_change[:, p]), dtype=np.float64)
        moments = np.zeros((p + 1, p + 1))
        moments[p] = moments[:, p] = np.append(mean, 1.0)
        second = np.zeros((p, p))
        second[upper] = np.linalg.solve(np.eye(len(units)) - second_map, self.after(moments)[:p, :p][upper])
        second = np.triu(second) + np.triu(second, 1).T
        return Steady(self.problem.centred.expected_loss(mean, second), mean + self.problem.minimiser)


def _radius(matrix: Array) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def refuse_growth(radius: float) -> None:
    """Raises NoClosedForm unless `radius`, what a round multiplies second moments by at most, is below 1."""
    if radius >= 1 - 1e-12:
        raise NoClosedForm(f"needs second moments that settle; a round multiplies them by {radius:.6g}")
