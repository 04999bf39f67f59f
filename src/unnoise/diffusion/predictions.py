"""What a network predicts, both ways: its training target, and the x_0 that its output means.

With x = alpha x_0 + sigma eps, every prediction F is affine in x_0, so one pair of formulas serves all:

    x_0 = skip * x + out * F            inference
    F   = the same line, solved for F    training target

| name | F                     | skip                    | out                     |
|------|-----------------------|-------------------------|-------------------------|
| eps  | eps                   | 1/alpha                 | -sigma/alpha            |
| x0   | x_0                   | 0                       | 1                       |
| v    | alpha eps - sigma x_0 | alpha/(alpha²+sigma²)   | -sigma/(alpha²+sigma²)  |
| flow | eps - x_0             | 1/(alpha+sigma)         | -sigma/(alpha+sigma)    |
| edm  | (x_0 - skip x)/out    | sd²/(sigma²+sd²)        | sigma sd/√(sigma²+sd²)  |

(Ho et al. 2020 eq. 11; Salimans & Ho 2022 appendix D; Liu et al. 2022; Karras et al. 2022 table 1.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unnoise.errors import ArgumentError, UnknownName

Coefficients = Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True)
class Prediction:
    """One row of the table. alpha and sigma are tensors that broadcast against x."""

    name: str
    coefficients: Coefficients  # (alpha, sigma) -> (skip, out)
    training: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (x0, eps, alpha, sigma) -> target, finite at both ends
    scale_in: Callable[[Tensor, Tensor], Tensor | float] = lambda alpha, sigma: 1.0

    def x0(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean estimate that this network output means."""
        skip, out = self.coefficients(alpha, sigma)
        return skip * x + out * output

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should have said."""
        return self.training(x0, eps, alpha, sigma)

    def output(self, x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The network output that means this x_0: the inverse of `x0`. Undefined where out is 0."""
        skip, out = self.coefficients(alpha, sigma)
        return (x0 - skip * x) / out


eps = Prediction("eps", lambda a, s: (1 / a, -s / a), lambda x0, n, a, s: n)
x0 = Prediction("x0", lambda a, s: (0.0, 1.0), lambda x0, n, a, s: x0)
v = Prediction("v", lambda a, s: (a / (a**2 + s**2), -s / (a**2 + s**2)), lambda x0, n, a, s: a * n - s * x0)
flow = Prediction("flow", lambda a, s: (1 / (a + s), -s / (a + s)), lambda x0, n, a, s: n - x0)


def edm(sigma_data: float = 0.5) -> Prediction:
    """EDM's preconditioning (Karras et al. 2022, table 1) for a VE process and data of this standard deviation."""
    if not sigma_data > 0:
        raise ArgumentError(f"got sigma_data {sigma_data}: expected a number above 0")
    sd2 = sigma_data**2

    def coefficients(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return sd2 / (sigma**2 + sd2), sigma * sigma_data / (sigma**2 + sd2).sqrt()

    def training(x0: Tensor, n: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        # (x0 - skip (x0 + sigma n)) / out, with the common sigma cancelled so that sigma = 0 is fine
        return (sigma * x0 - sd2 * n) / (sigma_data * (sigma**2 + sd2).sqrt())

    return Prediction("edm", coefficients, training, lambda alpha, sigma: 1 / (sigma**2 + sd2).sqrt())


PREDICTIONS = {"eps": eps, "x0": x0, "v": v, "flow": flow, "edm": edm()}


def prediction(name: str) -> Prediction:
    """By name; raises UnknownName."""
    if name not in PREDICTIONS:
        raise UnknownName("prediction", name, PREDICTIONS)
    return PREDICTIONS[name]
