"""The emoji recipe takes the steps that its arithmetic, written out here as one plain loop, takes: to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import tiny
from unnoise.conditioning import Cond
from unnoise.data import pictures
from unnoise.diffusion import predictions
from unnoise.diffusion.losses import Loss, TimeSampling
from unnoise.networks import tokenizers
from unnoise.training import loop
from unnoise.training.recipes import emoji
from unnoise.training.recipes.emoji_config import TrainConfig
from unnoise.training.recipes.emoji_model import spec

DRAFT = {"draft": {"cells": 4, "batch_size": 8, "steps_alone": 2}}
CASES = {
    "plain": {},
    "dit": {"network": tiny.DIT},
    "draft": DRAFT,
    "draft in bfloat16": {**DRAFT, "mixed_precision": "bf16"},
    "v with min_snr": {"prediction": "v", "schedule": {"kind": "vp"}, "loss": {"min_snr": 5.0}, "gradient_accumulation_steps": 1},
    "x0 by the flow loss": {"loss": {"space": "flow", "time": "logit_normal", "time_mean": 0.3}, **DRAFT, "seed": 3},
}


def context(encoder: nn.Module, ids: Tensor, cells: int) -> tuple[Cond, Tensor | None]:
    """States, pooled text, and the draft behind the pooled text, made as large as the pictures."""
    states = encoder(ids)
    if not cells:
        return Cond(tokens=states.last, pooled=states.pooled), None
    small = states.projected.view(-1, 3, cells, cells)
    return Cond(tokens=states.last, pooled=states.pooled, concat=F.interpolate(small, size=(16, 16), mode="bilinear")), small


def plain(config: TrainConfig, steps: int) -> dict[str, Tensor]:
    """Weights, averages and moments after some steps: no trainee, no objective, no loop of the package."""
    data = pictures.read(tiny.Path(config.data.source), config.data.size)
    learnt = tokenizers.learn(pictures.vocabulary(data), vocab=config.text.vocab, length=config.text.length)
    torch.manual_seed(config.seed)
    networks = spec(config, learnt).build()
    named = {f"networks.{name}": p for name, p in networks.named_parameters()}
    optimizer = torch.optim.AdamW(named.values(), betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True)
    average = {name: p.detach().clone() for name, p in named.items()}
    batches = [pictures.Batches(data, config.train_batch_size, config.seed, config.data.repaint)]
    batches += [pictures.Batches(data, config.draft.batch_size, config.seed + 1, config.data.repaint)]
    schedule, prediction = config.schedule.build(), predictions.prediction(config.prediction)
    weigh = Loss(config.loss.space, config.loss.floor, config.loss.min_snr)
    times = TimeSampling(config.loss.time, config.loss.time_mean, config.loss.time_std)
    cells, parts = config.draft.cells, config.gradient_accumulation_steps
    precise = {"dtype": torch.bfloat16, "enabled": config.mixed_precision == "bf16"}
    for step in range(steps):
        early = bool(cells) and step < config.draft.steps_alone
        for part in range(parts):
            number, loss = step * parts + part, torch.zeros(())
            x0, captions = batches[early](number)
            if cells:
                with torch.autocast("cpu", **precise):
                    small = context(networks["text_encoder"], learnt(captions).ids, cells)[1]
                assert small is not None
                loss = loss + config.draft.weight * F.mse_loss(small.float(), F.adaptive_avg_pool2d(x0, cells))
            if not early:
                chance = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
                gone = torch.rand(len(captions), generator=chance) < config.caption_dropout
                left = ["" if empty else text for empty, text in zip(gone, captions, strict=True)]
                noise = torch.randn(x0.shape, generator=chance)
                t = times.draw(len(x0), schedule, chance)
                alpha, sigma = (value.float().view(-1, 1, 1, 1) for value in (schedule.alpha(t), schedule.sigma(t)))
                with torch.autocast("cpu", **precise):
                    cond = context(networks["text_encoder"], learnt(left).ids, cells)[0]
                    output = networks["network"](alpha * x0 + sigma * noise, schedule.timestep(t).float(), cond)
                loss = loss + weigh(output.float(), x0, noise, alpha, sigma, prediction).mean()
            (loss / parts).backward()
        warm, end = config.lr_warmup_steps, config.max_train_steps
        rate = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (end - warm)))
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate
        nn.utils.clip_grad_norm_(named.values(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        follow = 1 - min(config.ema_decay, (1 + step) / (10 + step))
        for name, p in named.items():
            average[name].lerp_(p.detach(), follow)
    found = {f"weight {name}": p.detach() for name, p in named.items()}
    found |= {f"average {name}": value for name, value in average.items()}
    return found | {f"{key} {name}": value for name, p in named.items() for key, value in optimizer.state[p].items()}


@pytest.mark.parametrize("case", CASES)
def test_the_recipe_is_its_arithmetic(tmp_path, case):
    """Accumulation, repainting, dropped captions, warm-up, clipping, averages; with a draft, first steps that train it alone."""
    config = tiny.config(tmp_path, **{"max_train_steps": 6, **CASES[case]})
    run = emoji.prepare(config)
    for _ in loop.train(run):
        pass
    tiny.assert_equal(tiny.everything(run), plain(config, 6))
