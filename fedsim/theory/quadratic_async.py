"""Expected losses of asynchronous training on quadratics with one Hessian and one optimum, memoryless equal cycles.

Sources of the rules: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934, Algorithm 1 (mixing);
Dutta et al., arXiv 1803.01113 (asynchronous SGD). Along an eigenvector of the Hessian, with c_i the model that device i
holds, an update is
    w+ = p w + r c_i + noise (variance s^2),   c_i := w+,   i uniform,
p = 1, r = -rate * eigenvalue for delayed gradients; p = 1 - mixing, r = mixing * (1 - rate * eigenvalue)^tau for mixing.
Four moments close: E[w^2], E[w c], E[c^2] with c = mean of the c_i, and E[mean of c_i^2].
The mean of delayed gradients converges at rates where the mean square grows: stability is judged by the latter.
Memoryless cycles that start with the newest model, no transfers: the updates are a Poisson process of rate M / cycle mean,
independent of who makes them (`quadratic_clock.at_poisson_updates`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory.quadratic import Curve, Quadratic, Steady, refuse_growth


def delayed_sgd(problem: Quadratic, n_updates: int) -> Curve:
    """Expectations after 0 ... n_updates gradients, each taken at the model that its device last pulled."""
    return _curve(problem, n_updates, lambda a: (1.0, a - 1.0, 1.0))


def fedasync(problem: Quadratic, n_updates: int, local_steps: int, mixing: float) -> Curve:
    """Expectations after 0 ... n_updates mixings w + mixing * (x_i - w), a constant share whatever the staleness."""

    def coefficients(a: float) -> tuple[float, float, float]:
        noise = mixing**2 * sum(a ** (2 * step) for step in range(local_steps))
        return 1.0 - mixing, mixing * a**local_steps, noise

    return _curve(problem, n_updates, coefficients)


def stability_limit(n_devices: int) -> float:
    """rate * eigenvalue below which delayed gradients converge in mean square; 2 for one device."""

    def excess(x: float) -> float:
        return float(np.abs(np.linalg.eigvals(second_moment_map(n_devices, 1.0, -x))).max()) - 1.0

    return float(optimize.brentq(excess, 0.1 / np.sqrt(n_devices), 2.1, xtol=1e-13))


def mean_map(n_devices: int, p: float, r: float) -> Array:
    """(E[w], E[c]) after an update = this matrix times before it."""
    m = n_devices
    return np.array([[p, r], [p / m, 1 - 1 / m + r / m]])


def second_moment_map(n_devices: int, p: float, r: float) -> Array:
    """(E[w^2], E[w c], E[c^2], E[mean c_i^2]) after an update = this matrix times before it, without noise."""
    m = n_devices
    w2, wc, c2, own = np.eye(4)  # each quantity as coefficients of the four before the update
    own = c2 if m == 1 else own  # one device's mean is its own; else the map would have a root that nothing excites
    new_w2 = p**2 * w2 + 2 * p * r * wc + r**2 * own
    new_w_old_own, new_w_old_c = p * wc + r * own, p * wc + r * c2  # E[w+ c_i] and E[w+ c]
    new_wc = new_w_old_c + (new_w2 - new_w_old_own) / m
    old_c_own = c2  # E[c c_i] with i uniform
    new_c2 = c2 + 2 * (new_w_old_c - old_c_own) / m + (new_w2 - 2 * new_w_old_own + own) / m**2
    return np.array([new_w2, new_wc, new_c2, own + (new_w2 - own) / m])


@dataclass(frozen=True, eq=False)
class AsynchronousUpdate:
    """One update, `[direction, ...]`: the maps of the mean and of the second moments, and what noise adds to these."""

    problem: Quadratic
    mean_maps: Array
    second_maps: Array
    added: Array

    def curve(self, n_updates: int) -> Curve:
        """Expectations after 0 ... n_updates updates."""
        values, vectors = np.linalg.eigh(self.problem.common_hessian())
        start = self.problem.centred.start @ vectors
        mean, second = np.repeat(start[:, None], 2, axis=1), np.repeat(start[:, None] ** 2, 4, axis=1)
        means, losses = [mean[:, 0]], [0.5 * values @ second[:, 0]]
        for n in range(n_updates):
            mean = np.einsum("dij,dj->di", self.mean_maps, mean)
            second = np.einsum("dij,dj->di", self.second_maps, second) + self.added
            if not np.isfinite(second).all():
                raise NoClosedForm(f"needs second moments that floats can hold; they overflow in update {n + 1}")
            means.append(mean[:, 0])
            losses.append(0.5 * values @ second[:, 0])
        return Curve(np.array(losses), np.array(means) @ vectors.T + self.problem.minimiser, self)

    def steady(self) -> Steady:
        values = np.linalg.eigvalsh(self.problem.common_hessian())
        matters = values > 0
        refuse_growth(float(np.abs(np.linalg.eigvals(self.second_maps[matters])).max()))
        second = np.linalg.solve(np.eye(4) - self.second_maps[matters], self.added[matters][:, :, None])
        return Steady(float(0.5 * values[matters] @ second[:, 0, 0]), self.problem.minimiser)


def _curve(problem: Quadratic, n_updates: int, coefficients: Callable[[float], tuple[float, float, float]]) -> Curve:
    """coefficients: p, r and the variance of an update in units of one step's, from a = 1 - rate * eigenvalue."""
    values, vectors = np.linalg.eigh(problem.common_hessian())
    if not np.allclose(problem.centred.optimum, 0.0, atol=1e-12 * float(1 + np.abs(problem.optimum).max())):
        raise NoClosedForm("needs the same optimum on every device; got different ones")
    m = problem.n_devices
    p, r, noise = np.array([coefficients(a) for a in 1.0 - problem.rate * values]).T
    step_noise = problem.rate**2 * np.einsum("id,ij,jd->d", vectors, problem.noise.mean(axis=0), vectors)
    return AsynchronousUpdate(
        problem,
        mean_maps=np.stack([mean_map(m, *pair) for pair in zip(p, r, strict=True)]),
        second_maps=np.stack([second_moment_map(m, *pair) for pair in zip(p, r, strict=True)]),
        added=(noise * step_noise)[:, None] * np.array([1.0, 1 / m, 1 / m**2, 1 / m]),
    ).curve(n_updates)
