"""What the comparisons of whole pipelines share: diffusers' and ours side by side, from one folder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import unnoise
from peers import tiny
from unnoise.diffusion.noise import Streams
from unnoise.pipeline.model import Model

LOG = logging.getLogger("peers")  # the figures, for `pytest -o log_cli=true --log-cli-level=INFO`
SEED = 3
PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry, ugly"
LEADING = {"spacing": "leading", "spacing_options": {"offset": 1, "ending": "first"}}  # Stable Diffusion's scheduler config
TRAILING = {"spacing": "trailing"}


@dataclass(frozen=True)
class Pair:
    """diffusers' pipeline and our model, both of the folder."""

    pipe: Any
    model: Model
    folder: Path

    def as_(self, cls: str, **more: Any) -> Any:
        """The same components in another of diffusers' pipelines."""
        import diffusers

        scored = {"requires_aesthetics_score": True} if self.pipe.config.get("requires_aesthetics_score") else {}
        pipe = getattr(diffusers, cls)(**{**self.pipe.components, **more}, **_without_checks(cls), **scored)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def scheduled(self, cls: str, **config: Any) -> Any:
        """The pipeline with another scheduler, on the same betas."""
        import diffusers

        scheduler = getattr(diffusers, cls).from_config(self.pipe.scheduler.config, **config)
        return self.as_(type(self.pipe).__name__, scheduler=scheduler)


def _without_checks(cls: str) -> dict[str, Any]:
    plain = cls.startswith("StableDiffusion") and "XL" not in cls and "StableDiffusion3" not in cls
    return {"requires_safety_checker": False} if plain or cls == "LatentConsistencyModelPipeline" else {}


def pair(name: str, shared: Path, folder: Path) -> Pair:
    torch.manual_seed(0)
    pipe = tiny.saved(name, shared, folder)
    return Pair(pipe, unnoise.load(folder, dtype="float32", device="cpu"), folder)


Pairs = Callable[[str], Pair]


def once(shared: Path, folders: pytest.TempPathFactory) -> Pairs:
    """A pair by its name, made when it is first asked for."""

    @functools.cache
    def get(name: str) -> Pair:
        return pair(name, shared, folders.mktemp(name))

    return get


def theirs(pipe: Any, prompt: Any = PROMPT, **arguments: Any) -> Tensor:
    """Their last latents."""
    with torch.no_grad():
        return pipe(prompt, output_type="latent", **arguments).images


def ours(model: Model, prompt: Any = PROMPT, **arguments: Any) -> Tensor:
    return model.generate(prompt, seed=SEED, output_type="latent", **arguments).latents


def difference(mine: Tensor, peer: Tensor) -> float:
    """The largest, relative to the largest of theirs."""
    return float((mine.double() - peer.double()).abs().max() / peer.double().abs().max())


def close(mine: Tensor, peer: Tensor, tolerance: float = 1e-4, what: str = "") -> None:
    assert mine.shape == peer.shape
    found = difference(mine, peer)
    LOG.info("%s differs by %.1e", what or "the end", found)
    assert found <= tolerance, f"{what or 'the end'}: {found:.2e} of the largest"


def as_noisy(pipe: Any, noise: Tensor) -> Tensor:
    """Their Euler starts from sigma_max times the noise with spacings that begin at the noisy end. The authors of SDXL (sgm) and ours keep
    the variance: sqrt(sigma_max² + 1) times it."""
    pipe.scheduler.set_timesteps(2)
    sigma = float(pipe.scheduler.sigmas[0])
    return noise * (sigma**2 + 1) ** 0.5 / sigma


def draws(count: int, rows: int = 1, channels: int = 4, side: int = 16) -> list[Tensor]:
    """What our streams give, in order: the starting noise, the autoencoder's, the steps'."""
    streams = Streams(range(SEED, SEED + rows))
    return [streams.draw(torch.empty(rows, channels, side, side)) for _ in range(count)]


def feed(monkeypatch: pytest.MonkeyPatch, pipe: Any, noises: Sequence[Tensor]) -> None:
    """Whatever they draw, they draw these."""
    import diffusers.models.autoencoders.vae as vae

    given = iter(noises)
    scheduler = type(pipe.scheduler).__module__
    for module in (type(pipe).__module__, vae.__name__, *([scheduler] if _draws(scheduler) else [])):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: next(given))


def _draws(module: str) -> bool:
    import sys

    return hasattr(sys.modules[module], "randn_tensor")


def picture(side: int = 128) -> Image.Image:
    """Smooth colours."""
    rows, cols = np.mgrid[0:side, 0:side] / side
    channels = [0.5 + 0.4 * np.sin(6 * rows + i) * np.cos(5 * cols + 2 * i) for i in range(3)]
    return Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))


def half(side: int = 128) -> Image.Image:
    """A mask whose right half is painted anew."""
    return Image.fromarray(np.repeat((np.arange(side) >= side // 2)[None], side, axis=0).astype(np.uint8) * 255)
