"""Answer many unlike requests with one forward a round: each has its own solver, its own number of steps and its own condition.

A `Run` is one request. It says which point it wants denoised next, and `advance` answers all of them with one call of the denoiser.
Requests join and leave between two calls, as in a server. A request's result does not depend on what else is in its batch.
"""

import torch
from torch import Tensor

import unnoise
from unnoise.conditioning import Cond
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.sampling import Run, advance, plan, stream

schedule = unnoise.schedules.flow()
calls = 0


def denoiser(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """E[x_0 | x_t] of data N(label, 0.25), in place of a network: x (rows of all requests, 4)."""
    global calls
    calls += 1
    alpha, sigma, mean = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None], cond.need("labels", "this denoiser")[:, None]
    return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * mean)


def request(seed: int, sampler: str, steps: int, label: int) -> Run:
    """One picture of 4 numbers; its noise depends on its seed alone."""
    noise = Streams([seed])
    return Run(noise.draw(torch.empty(1, 4)), plan(schedule, sampler, steps), noise, Cond(labels=torch.tensor([label])))


asked = [(1, "euler", 20, 0), (2, "heun", 7, 3), (3, "dpmpp_2m", 12, 5), (4, "euler_ancestral", 30, -2)]
waiting = [request(*arguments) for arguments in asked]
running, finished = waiting[:2], {}
while running:
    for run, state in zip(running, advance(running, denoiser), strict=True):
        if isinstance(state, Exception):
            raise state  # a server reports it to its own request; the others go on
        if run.done:
            finished[run] = run.state
    running = [run for run in running if not run.done] + [run for run in waiting[2:] if calls == 3]  # two requests join late
print(f"{len(finished)} requests, {calls} calls of the denoiser")

for run, arguments in zip(waiting, asked, strict=True):
    *_, alone = stream(request(*arguments), denoiser)
    print(arguments, "equal to the same request alone:", torch.equal(alone.x, finished[run]))
