"""What a network predicts, both ways: its training target, and the x_0 that its output means.

With x = alpha x_0 + sigma eps, every prediction F is affine in x_0, so one pair of formulas serves all:

    x_0 = skip * x + out * F            inference
    F   = the same line, solved for F    training target

| name  | F                           | skip                  | out                    |
|-------|-----------------------------|-----------------------|------------------------|
| eps   | eps                         | 1/alpha               | -sigma/alpha           |
| x0    | x_0                         | 0                     | 1                      |
| v     | alpha eps - sigma x_0       | alpha/(alpha²+sigma²) | -sigma/(alpha²+sigma²) |
| flow  | eps - x_0                   | 1/(alpha+sigma)       | -sigma/(alpha+sigma)   |
| score | -eps, sigma times the score | 1/alpha               | sigma/alpha            |
| edm   | (x_0 - skip x)/out          | sd²/(sigma²+sd²)      | sigma sd/√(sigma²+sd²) |

`consistency` is edm with sigma - sigma_min for sigma, but for the square root, and `lcm` bends eps at time 0: see there.

(Ho et al. 2020 eq. 11; Salimans & Ho 2022 appendix D; Liu et al. 2022; Karras et al. 2022 table 1.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unnoise.diffusion.schedules import Schedule
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
score = Prediction("score", lambda a, s: (1 / a, s / a), lambda x0, n, a, s: -n)  # score_sde's NCSN++ (Song et al. 2021)
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


def consistency(sigma_data: float = 0.5, sigma_min: float = 0.002) -> Prediction:
    """The scalings of consistency models (Song et al. 2023, appendix C): at sigma_min the function is the identity, whatever F says."""
    if not (sigma_data > 0 and sigma_min > 0):
        raise ArgumentError(f"got sigma_data {sigma_data}, sigma_min {sigma_min}: expected numbers above 0")

    def coefficients(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        away = sigma - sigma_min
        return sigma_data**2 / (away**2 + sigma_data**2), away * sigma_data / (sigma**2 + sigma_data**2).sqrt()

    return _bounded("consistency", coefficients, edm(sigma_data).scale_in)


def lcm(schedule: Schedule, scale: float = 10.0) -> Prediction:
    """Latent consistency models (Luo et al. 2023, section 4.1): an eps network's x_0, held to the identity at timestep 0.

    Not among PREDICTIONS, for it is a table's own.

    With s = scale t: skip = .25/(s² + .25) and out = s/√(s² + .25), the latter times eps' x_0.
    """

    def coefficients(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        alpha_, sigma_ = (value.cpu() if value.device.type == "mps" else value for value in (alpha, sigma))  # no float64 there
        ratio = alpha_.double() / sigma_.double()
        s = scale * schedule.timestep(schedule.time(2 * ratio.log())).to(alpha)
        skip, out = 0.25 / (s**2 + 0.25), s / (s**2 + 0.25).sqrt()
        eps_skip, eps_out = eps.coefficients(alpha, sigma)
        return skip + out * eps_skip, out * eps_out

    return _bounded("lcm", coefficients)


def _bounded(name: str, coefficients: Coefficients, scale_in: Callable[[Tensor, Tensor], Tensor | float] | None = None) -> Prediction:
    """Its target is what F must be for the function to say x_0; undefined where the function is the identity."""

    def training(x0: Tensor, n: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        skip, out = coefficients(alpha, sigma)
        return (x0 - skip * (alpha * x0 + sigma * n)) / out

    return Prediction(name, coefficients, training, scale_in or eps.scale_in)


PREDICTIONS = {"eps": eps, "score": score, "x0": x0, "v": v, "flow": flow, "edm": edm(), "consistency": consistency()}


def prediction(name: str) -> Prediction:
    """By name; raises UnknownName."""
    if name not in PREDICTIONS:
        raise UnknownName("prediction", name, PREDICTIONS)
    return PREDICTIONS[name]
