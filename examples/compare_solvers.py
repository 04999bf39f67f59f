"""Compare solvers at equal cost: how far each ends from the exact path when the network may be asked 10 times.

Evaluations count, not steps: `heun` asks twice a step. `unnoise bench solvers` does this for every sampler, spacing and budget.
"""

import torch

import unnoise
from unnoise.diffusion.solvers import SOLVERS

BUDGET = 10
model = unnoise.load("emoji")


def draw(sampler: str, steps: int) -> torch.Tensor:
    """(1, 3, 64, 64) the final state, from the same noise each time."""
    settings = {"sampler": sampler, "num_inference_steps": steps, "spacing": "logsnr", "guidance_scale": 1.0}
    return model.generate("a red apple", seed=7, output_type="latent", **settings).latents


def most_steps(sampler: str) -> int:
    """The most steps that cost at most BUDGET evaluations."""
    return max(steps for steps in range(1, BUDGET + 1) if SOLVERS[sampler].cost(steps) <= BUDGET)


exact = draw("dpmpp_2m", 60)  # a fine run stands for the exact path
errors = {}
for sampler in ("ddim", "heun", "dpmpp_2m", "unipc", "deis"):
    found = draw(sampler, most_steps(sampler))
    errors[sampler] = ((found - exact).square().mean() / exact.square().mean()).sqrt().item()
for sampler, error in sorted(errors.items(), key=lambda row: row[1]):
    print(f"{sampler:9s} {most_steps(sampler):2d} steps: relative error {error:.3f}")
