"""Train a network of your own on points of a ring, in plain PyTorch, and sample it with any solver of `unnoise.sample`.

The library asks for no base class: a denoiser is any callable that takes a state x (b, ...) and times t (b,), and returns the estimate
of x_0. Here a network predicts the noise, eps, and one line turns it into x_0.
"""

import math

import torch
from torch import Tensor, nn

import unnoise

torch.manual_seed(0)
schedule = unnoise.schedules.vp()  # DDPM's process: x_t = alpha(t) x_0 + sigma(t) eps, with t from 0 to 999


class Network(nn.Module):
    """(b, 2) points and (b,) times -> (b, 2) noise."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phases = t[:, None] / 1000 * torch.tensor([1.0, 2.0, 4.0, 8.0]) * math.pi / 2
        return self.layers(torch.cat([x, phases.sin(), phases.cos()], dim=1))


def ring(n: int) -> Tensor:
    """n points at a distance of 1 from the middle."""
    angle = torch.rand(n) * 2 * math.pi
    return torch.stack([angle.cos(), angle.sin()], dim=1)


network = Network()
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
for _ in range(1500):
    x0, eps, t = ring(512), torch.randn(512, 2), torch.randint(0, 1000, (512,)).float()
    x = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * eps
    loss = (network(x.float(), t) - eps).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.2f}")


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    return (x - schedule.sigma(t)[:, None] * network(x.float(), t.float())) / schedule.alpha(t)[:, None]


for sampler, steps in (("ddpm", 200), ("ddim", 50), ("dpmpp_2m", 20)):
    points = unnoise.sample(denoiser, torch.randn(1000, 2), schedule=schedule, sampler=sampler, steps=steps)
    radius = points.norm(dim=1)
    print(f"{sampler:8s} {steps:3d} steps: distance from the middle {radius.mean():.2f} (1 is right), spread {radius.std():.2f}")
