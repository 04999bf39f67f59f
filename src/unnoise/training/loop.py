"""The training loop: a generator of steps. Whoever iterates decides what to show, and stops by leaving.

Everything random in a step is drawn from (seed, step), so a run that was killed and resumed is the run left alone, bit for bit on a CPU
(with as many threads: they decide in which order a sum is taken).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from unnoise.errors import NonFiniteError
from unnoise.training import batch, checkpoints, settings
from unnoise.training.batch import Draw
from unnoise.training.ema import EMA
from unnoise.training.objective import Objective
from unnoise.training.settings import LoopSettings
from unnoise.training.trainee import Trainee

B = TypeVar("B")  # the kind of batch that the objective takes


@dataclass(frozen=True)
class Step:
    """One optimiser step, done."""

    step: int  # steps taken so far
    steps: int  # the total
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    checkpoint: Path | None  # the one just written


@dataclass
class Run(Generic[B]):
    """Everything that a step reads or changes. Batches are counted from 0; a step takes gradient_accumulation_steps of them."""

    settings: LoopSettings
    trainee: Trainee
    objective: Objective[B]
    batches: Callable[[int], B]  # a pure function of the batch's number
    draws: Callable[[int], Draw]  # the same
    ema: EMA
    optimizer: torch.optim.Optimizer
    taken: int = 0


def begin(
    config: LoopSettings,
    trainee: Trainee,
    objective: Objective[B],
    batches: Callable[[int], B],
    draws: Callable[[int], Draw] | None = None,
) -> Run[B]:
    """A run with AdamW, at its newest checkpoint or at its start. draws: None draws from (seed, number).

    Raises FileError where a checkpoint was made with other settings. max_train_steps may change; the cosine of the learning rate ends
    there, so the steps to come follow another curve than those taken.
    """
    found = checkpoints.newest(config.checkpoint_folder)
    if found:
        settings.check_unchanged(config)
    optimizer = torch.optim.AdamW(
        trainee.parameters.values(),
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    ema = EMA(trainee.parameters, config.ema_decay)
    run = Run(config, trainee, objective, batches, draws or (lambda number: seeded(config.seed, number)), ema, optimizer)
    if found:
        run.taken = checkpoints.restore(found, trainee.parameters, ema, optimizer)
    settings.keep(config)
    return run


def seeded(seed: int, number: int) -> Draw:
    """The random numbers of batch `number`."""
    return batch.Seeded(batch.generator(seed, number))


def learning_rate(config: LoopSettings, step: int) -> float:
    """Linear warm-up, then half a cosine down to lr_end at the last step."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    part = (step - config.lr_warmup_steps) / max(1, config.max_train_steps - config.lr_warmup_steps)
    return config.learning_rate * (config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))


def train(run: Run[B]) -> Iterator[Step]:
    """Steps until max_train_steps, from wherever the run stands. Raises NonFiniteError at the first loss that is not a number."""
    config = run.settings
    while run.taken < config.max_train_steps:
        started = time.perf_counter()
        rate = learning_rate(config, run.taken)
        loss, norm = _optimise(run, rate)
        run.ema.update(run.taken)
        run.taken += 1
        due = run.taken % config.checkpointing_steps == 0 or run.taken == config.max_train_steps
        saved = save(run) if due else None
        yield Step(run.taken, config.max_train_steps, loss, rate, norm, time.perf_counter() - started, saved)


def _optimise(run: Run[B], rate: float) -> tuple[float, float]:
    """Take one optimiser step; give the mean loss of its batches, and the norm of the gradient before clipping."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss = _backward(run)
    parameters = list(run.trainee.parameters.values())  # a list: an iterator would be empty when it comes to clipping
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not math.isfinite(loss) or not bool(torch.isfinite(norm)):
        where = "the loss" if not math.isfinite(loss) else f"the gradient of {_culprit(run.trainee)}"
        run.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(
            f"{where} is not finite at step {run.taken + 1} (loss {loss:g}): stopped; no checkpoint holds it. "
            "Lower learning_rate, or train without mixed_precision"
        )
    nn.utils.clip_grads_with_norm_(parameters, run.settings.max_grad_norm, norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return loss, norm.item()


def _backward(run: Run[B]) -> float:
    """Gather the gradient of gradient_accumulation_steps batches; give their mean loss."""
    parts, total = run.settings.gradient_accumulation_steps, 0.0
    for number in range(run.taken * parts, (run.taken + 1) * parts):
        loss: Tensor = run.objective(run.batches(number), run.draws(number))
        (loss / parts).backward()
        total += loss.item() / parts
    return total


def _culprit(trainee: Trainee) -> str:
    """The name of the first parameter whose gradient is not finite."""
    named = trainee.parameters.items()
    return next((name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()), "no one weight")


def save(run: Run[B]) -> Path:
    """Write a checkpoint of the run as it stands between two steps; gives its folder."""
    config = run.settings
    return checkpoints.save(
        config.checkpoint_folder, run.taken, run.trainee.parameters, run.ema, run.optimizer, config.checkpoints_total_limit
    )
