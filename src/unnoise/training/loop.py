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

import torch
from torch import Tensor, nn

from unnoise.data.pictures import Batches
from unnoise.errors import NonFiniteError
from unnoise.training import checkpoints
from unnoise.training.config import TrainConfig
from unnoise.training.ema import EMA
from unnoise.training.objective import Objective, TextDenoiser


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
class Run:
    """Everything that a step reads or changes."""

    config: TrainConfig
    model: TextDenoiser
    objective: Objective
    batches: Batches
    draft_batches: Batches | None  # captions that train the draft alone
    ema: EMA
    optimizer: torch.optim.Optimizer
    taken: int = 0

    @property
    def checkpoint_folder(self) -> Path:
        return self.config.output_dir / "checkpoints"


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to lr_end at the last step."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    part = (step - config.lr_warmup_steps) / max(1, config.max_train_steps - config.lr_warmup_steps)
    return config.learning_rate * (config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))


def train(run: Run) -> Iterator[Step]:
    """Steps until max_train_steps, from wherever the run stands. Raises NonFiniteError at the first loss that is not a number."""
    config = run.config
    network = torch.compile(run.model) if config.compile else run.model
    run.model.train()
    while run.taken < config.max_train_steps:
        started = time.perf_counter()
        rate = learning_rate(config, run.taken)
        loss, norm = _optimise(run, network, rate)
        run.ema.update(run.model, run.taken)
        run.taken += 1
        due = run.taken % config.checkpointing_steps == 0 or run.taken == config.max_train_steps
        saved = save(run) if due else None
        yield Step(run.taken, config.max_train_steps, loss, rate, norm, time.perf_counter() - started, saved)


def _optimise(run: Run, network: Callable[..., Tensor], rate: float) -> tuple[float, float]:
    """One update from gradient_accumulation_steps batches; gives the mean loss and the norm before clipping."""
    config, parts = run.config, run.config.gradient_accumulation_steps
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    total = 0.0
    for part in range(parts):
        loss = _loss(run, network, run.taken * parts + part)
        (loss / parts).backward()
        total += loss.item() / parts
    norm = nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None])
    if not math.isfinite(total) or not bool(torch.isfinite(norm)):
        where = "the loss" if not math.isfinite(total) else f"the gradient of {_culprit(run.model)}"
        run.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(
            f"{where} is not finite at step {run.taken + 1} (loss {total:g}): stopped; no checkpoint holds it. "
            "Lower learning_rate, or train without mixed_precision"
        )
    nn.utils.clip_grads_with_norm_(run.model.parameters(), config.max_grad_norm, norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return total, norm.item()


def _loss(run: Run, network: Callable[..., Tensor], number: int) -> Tensor:
    """The loss of batch `number`: the draft's, and but for the first steps, which cost little, the network's."""
    config, terms = run.config, []
    alone = run.draft_batches is not None and run.taken < config.draft.steps_alone
    batch = run.draft_batches(number) if run.draft_batches is not None and alone else run.batches(number)
    if run.draft_batches is not None:
        terms.append(run.objective.draft(run.model, *batch))
    if not alone:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        terms.append(run.objective(network, *batch, generator))
    return torch.stack(terms).sum()


def _culprit(model: nn.Module) -> str:
    """The first weight whose gradient is not finite."""
    return next((name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()), "no one weight")


def save(run: Run) -> Path:
    """A checkpoint of the run as it stands between two steps."""
    config = run.config
    return checkpoints.save(run.checkpoint_folder, run.taken, run.model, run.ema, run.optimizer, config.checkpoints_total_limit)
