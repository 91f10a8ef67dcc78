"""Define the diffusion of MAR's tokens: its schedule, respaced, and one reverse step.

Gaussian diffusion with a cosine schedule and learned variance (Nichol and Dhariwal 2021). All
constants are float64: in the first step the noise is multiplied by 2e4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.spec import TIMES

MOST_BETA = 0.999

Array = NDArray[np.float64]


def cosine_betas() -> Array:
    """Return 1 - a(t + 1) / a(t), at most 0.999, for each time, [TIMES].

    Here a(t) = cos(pi/2 (t/T + 0.008) / 1.008)^2.
    """

    def alpha_bar(time: int) -> float:
        return math.cos((time / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar(i + 1) / alpha_bar(i), MOST_BETA) for i in range(TIMES)])


def respaced(steps: int) -> NDArray[np.int64]:
    """Return the times that `steps` >= 2 of TIMES use, [steps]: 0, TIMES - 1 and between them.

    They are rounded. The stride is added up as the official code does it, so that its halves are
    rounded alike.
    """
    stride, at, times = (TIMES - 1) / (steps - 1), 0.0, []
    for _ in range(steps):
        times.append(round(at))
        at += stride
    return np.array(times)


@dataclass(frozen=True, slots=True)
class Diffusion:
    """Hold the constants of each step, [steps], and its time in the training.

    With a token x_t = sqrt(`alpha_bar`) x_0 + sqrt(1 - `alpha_bar`) noise, x_0 is `clean_of_x` x_t
    - `clean_of_noise` noise, and x_{t-1} has the mean `mean_of_clean` x_0 + `mean_of_x` x_t and a
    log variance between `log_least` (of the posterior) and `log_most` (beta).
    """

    times: NDArray[np.int64]
    alpha_bar: Array
    clean_of_x: Array
    clean_of_noise: Array
    mean_of_clean: Array
    mean_of_x: Array
    log_least: Array
    log_most: Array

    @classmethod
    def of(cls, steps: int) -> Diffusion:
        """Return the diffusion of `steps`, 2 to TIMES."""
        times = respaced(steps)
        alpha_bar = np.cumprod(1 - cosine_betas(), dtype=np.float64)[times]
        before = np.append(1.0, alpha_bar[:-1])
        beta = 1 - alpha_bar / before
        posterior = beta * (1 - before) / (1 - alpha_bar)
        return cls(
            times=times,
            alpha_bar=alpha_bar,
            clean_of_x=np.sqrt(1 / alpha_bar),
            clean_of_noise=np.sqrt(1 / alpha_bar - 1),
            mean_of_clean=beta * np.sqrt(before) / (1 - alpha_bar),
            mean_of_x=(1 - before) * np.sqrt(1 - beta) / (1 - alpha_bar),
            # The first is 0, whose logarithm nothing may have.
            log_least=np.log(np.append(posterior[1], posterior[1:])),
            log_most=np.log(beta),
        )

    def back(self, step: int, x: Array, noise: Array, spread: Array, drawn: Array) -> Array:
        """Return x_{t-1} of x_t, the predicted noise, where its variance lies, and a draw.

        All of one shape. `spread` is 1 for the largest variance, -1 for the least. Step 0, the
        last, adds nothing to the mean.
        """
        clean = self.clean_of_x[step] * x - self.clean_of_noise[step] * noise
        mean = self.mean_of_clean[step] * clean + self.mean_of_x[step] * x
        if step == 0:
            return mean  # type: ignore[no-any-return]
        share = (spread + 1) / 2
        log_variance = share * self.log_most[step] + (1 - share) * self.log_least[step]
        return mean + np.exp(0.5 * log_variance) * drawn  # type: ignore[no-any-return]
