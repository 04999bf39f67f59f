"""A request becomes a trajectory: its steps, the state that it starts from, the conditions, and who answers its questions.

Text, image, mask, control and the state of another model are inputs here, not classes:

    image           the state is the image's latents and noise, and the steps are the last of the grid
    mask            an inpainting network is shown mask and masked image; any other is told the estimate outside the mask
    control         the network is asked together with its ControlNets
    denoising_end   the steps stop where another model takes over, which starts with denoising_start from the latents
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise import inputs
from unnoise.diffusion import sampling
from unnoise.diffusion.guidance import Guidance, Guided, guidance
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.sampling import Denoiser, Plan, Run, initial
from unnoise.diffusion.schedules import Schedule
from unnoise.encoding import Encoder, Sizes, Wanted
from unnoise.errors import ArgumentError
from unnoise.families.spec import ModelSpec
from unnoise.inputs import Control
from unnoise.networks.mmdit import SkipLayers
from unnoise.request import Request
from unnoise.runtime import control, first_stage, skip_layers
from unnoise.runtime.classifier import ClassifierGuided
from unnoise.runtime.denoise import NetworkDenoiser
from unnoise.runtime.known import Known
from unnoise.runtime.skip_layers import SkipLayerGuided

HANDED_OVER = 0x5DEECE66D  # any number: it parts the streams of two models with one seed
SMALL = 50_000_000  # parameters: below, two rows at once are hardly slower than one


@dataclass(frozen=True)
class Given:
    """The tensors of a request."""

    latents: Tensor | None = None  # unit noise instead of the seeds' own
    image: Tensor | None = None  # (b, 3, h, w) in 0..1
    x0: Tensor | None = None  # (b, c, h', w') latents instead of an image, or the state that another model left
    mask: Tensor | None = None  # (b, 1, h, w): 1 is painted
    controls: tuple[Control, ...] = ()
    classifier: nn.Module | None = None  # of noisy pictures

    def named(self) -> dict[str, Any]:
        """What was given, pictures and noise by ten digits of a sha256: the part of a record that no setting holds."""
        tensors = {"latents": self.latents, "image": self.image if self.x0 is None else self.x0, "mask_image": self.mask}
        named: dict[str, Any] = {name: inputs.digest(value) for name, value in tensors.items() if value is not None}
        named |= {"control": [one.record() for one in self.controls]} if self.controls else {}
        return named | ({"classifier": True} if self.classifier is not None else {})


@dataclass(frozen=True)
class Trajectories:
    """What trajectories of one model are made from."""

    spec: ModelSpec
    networks: nn.ModuleDict
    schedule: Schedule
    prediction: Prediction
    encode: Encoder

    @property
    def device(self) -> torch.device:
        return next(self.networks["network"].parameters()).device

    def guided(self, network: nn.Module, *, alone: bool = False) -> Guided:
        """On a CPU the network always sees two rows at once, so that a picture never depends on its batch; without guidance a large
        network sees them one by one. A single picture of a small model without guidance is computed twice: that costs little.

        alone: whether only the prompt is asked, and not the negative prompt beside it.
        """
        large = sum(p.numel() for p in network.parameters()) > SMALL
        rows = (1 if large and alone else 2) if self.device.type == "cpu" else None
        asked = NetworkDenoiser(network, self.schedule, self.prediction, rows, next(network.parameters()).dtype)
        return Guided(asked, self.schedule, self.prediction, self.spec.guided_channels)

    def shape(self, asked: Request) -> tuple[int, ...]:
        return (len(asked.prompts), self.spec.channels, asked.height // self.spec.factor, asked.width // self.spec.factor)

    def plan(self, asked: Request) -> Plan:
        """All steps of the grid."""
        how = (asked.sampler, asked.steps, asked.spacing, None, dict(asked.spacing_options))
        return sampling.plan(self.schedule, *how, **dict(asked.sampler_options))

    def begin(self, asked: Request, given: Given) -> tuple[Run, Denoiser]:
        """The trajectory, and the denoiser that answers it."""
        noise, shape = _streams(asked), torch.empty(self.shape(asked), device=self.device)
        drawn = noise.draw(shape)  # first also where it is not used: see `sample`
        unit = drawn if given.latents is None else given.latents
        x0 = self._encoded(given.image, noise, shape) if given.x0 is None else given.x0
        plan = part(self.plan(asked), asked, x0 is not None)
        cond, network = self._with_channels(self.guidance(asked), asked, given, noise), self.networks["network"]
        if given.controls:
            cond, network = self._controlled(cond, given, asked, plan)
        denoiser = self.guided(network, alone=asked.guidance_scale == 1)
        x = self._state(plan, asked, unit, x0, given)
        asked_of: Denoiser = self._skipping(denoiser, asked, plan) if asked.get("skip_guidance_layers") else denoiser
        if given.classifier is not None:
            asked_of = ClassifierGuided(asked_of, self.schedule, given.classifier, asked.get("classifier_scale"))
        if given.mask is None or x0 is None or "mask" in self.spec.extra_channels:
            return Run(x, plan, noise, cond), asked_of
        mask = _to_latents(given.mask, x).to(self.device)
        x = torch.where(mask > 0, x, _noised(plan, x0, unit))
        return Run(x, plan, noise, cond), Known(asked_of, x0, mask)

    def _skipping(self, denoiser: Guided, asked: Request, plan: Plan) -> Denoiser:
        """An MMDiT has no learned variance, so all three answer tensors."""
        strong, times = denoiser.denoiser, [level.t for level in plan.levels]
        assert isinstance(strong, NetworkDenoiser)  # `guided` made it
        weak = replace(strong, network=SkipLayers(strong.network, asked.get("skip_guidance_layers")))
        acts = skip_layers.window(times, asked.get("skip_layer_guidance_start"), asked.get("skip_layer_guidance_stop"))
        return SkipLayerGuided(denoiser, strong, weak, asked.get("skip_layer_guidance_scale"), acts)

    def _encoded(self, image: Tensor | None, noise: Streams, shape: Tensor) -> Tensor | None:
        """An image's latents; of a model in pixels the image itself."""
        if image is None or "low_res" in self.spec.extra_channels:
            return None
        x = 2 * image.to(self.device) - 1
        return first_stage.encode(self.stage(), x, noise.draw(shape)) if self.spec.first_stage else x

    def stage(self) -> nn.Module:
        """The autoencoder. Raises ArgumentError where the model's file had none."""
        if "autoencoder" not in self.networks:
            raise ArgumentError(f"this {self.spec.name} has no autoencoder: load it with parts={{'autoencoder': FILE}}, or ask for latents")
        return self.networks["autoencoder"]

    def _state(self, plan: Plan, asked: Request, unit: Tensor, x0: Tensor | None, given: Given) -> Tensor:
        """At the first level: noise, or a picture and noise, or what another model left."""
        if asked.get("denoising_start") is not None:
            if x0 is None or given.image is not None or given.mask is not None:
                raise ArgumentError("got denoising_start: expected as image the latents of a model that had denoising_end, and no mask")
            return x0.to(self.device)
        all_new = given.mask is not None and asked.get("strength") == 1
        return initial(unit, plan) if x0 is None or all_new else _noised(plan, x0, unit)

    def guidance(self, asked: Request) -> Guidance:
        """Both sides of every picture, encoded together so that they have as many tokens."""
        n, (positive, negative) = len(asked.prompts), self.wanted(asked)
        told = self.spec.guidance_distilled  # the network itself, and it answers guided
        if asked.guidance_scale == 1 or told:
            both = self.encode(positive)
            both = replace(both, guidance=torch.full((n,), asked.guidance_scale, device=self.device)) if told else both
            return guidance(both, both, 1.0)
        both = self.encode([*positive, *negative])
        options = {"rescale": asked.guidance_rescale, "interval": asked.guidance_interval}
        return guidance(both.rows(0, n), both.rows(n, 2 * n), asked.guidance_scale, **options)

    def wanted(self, asked: Request) -> tuple[list[Wanted], list[Wanted]]:
        """Both sides of every picture in words."""
        positive = [self._wanted(asked, text, label) for text, label in zip(asked.prompts, asked.labels, strict=True)]
        return positive, [self._wanted(asked, text, None, negative=True) for text in asked.negative_prompts]

    def _wanted(self, asked: Request, text: str | None, label: int | None, *, negative: bool = False) -> Wanted:
        size = (asked.height, asked.width)
        original, target = (asked.get(name) or size for name in ("original_size", "target_size"))
        score = asked.get("negative_aesthetic_score" if negative else "aesthetic_score")
        sizes = Sizes(tuple(original), tuple(asked.get("crops_coords_top_left")), tuple(target), score)  # pyright: ignore[reportArgumentType]
        options: dict[str, Any] = {"weights": asked.get("prompt_weights"), "t5_length": asked.get("max_sequence_length")}
        skip = 0 if negative else asked.get("clip_skip")  # as in diffusers, for the prompt alone
        return Wanted(text, *size, sizes, label, skip, **options)

    def _with_channels(self, cond: Guidance, asked: Request, given: Given, noise: Streams) -> Guidance:
        """What joins x in the models that are shown more than x, the same on both sides."""
        if not self.spec.extra_channels:
            return cond
        makers: dict[str, Callable[[], Tensor]] = {
            "mask": lambda: _to_latents(self._mask(given), torch.empty(self.shape(asked))),
            "masked_image": lambda: self._masked(given, noise, asked),
            "low_res": lambda: self._low_res(given, asked),
        }
        for name in self.spec.extra_channels:
            if name not in makers:
                raise ArgumentError(f"{self.spec.name} wants a {name} map, which generate cannot give it yet: use another model")
        extra = torch.cat([makers[name]().to(self.device) for name in self.spec.extra_channels], dim=1)
        return replace(cond, positive=replace(cond.positive, concat=extra), negative=replace(cond.negative, concat=extra))

    def _mask(self, given: Given) -> Tensor:
        if given.mask is None or given.image is None:
            raise ArgumentError(f"{self.spec.name} paints into a picture: give image and mask_image")
        return given.mask

    def _masked(self, given: Given, noise: Streams, asked: Request) -> Tensor:
        """Latents of the image with its masked part gray."""
        assert given.image is not None  # the mask is asked for first
        x = (2 * given.image - 1) * (self._mask(given) < 0.5)
        return first_stage.encode(self.stage(), x.to(self.device), noise.draw(torch.empty(self.shape(asked), device=self.device)))

    def _low_res(self, given: Given, asked: Request) -> Tensor:
        if given.image is None:
            raise ArgumentError(f"{self.spec.name} enlarges a picture: give it as image")
        return F.interpolate(2 * given.image - 1, size=(asked.height, asked.width), mode="bilinear")

    def _controlled(self, cond: Guidance, given: Given, asked: Request, plan: Plan) -> tuple[Guidance, nn.Module]:
        nets, positive, negative, n = [], [], [], len(asked.prompts)
        times = [level.t for level in plan.levels]
        for one in given.controls:
            acts = control.window(self.schedule, times, one.start, one.end)
            guess = "power" if one.guess else None
            shown = control.hint(one.net.network, self._shown(one, asked, n), one.scale, acts=acts, guess=guess)
            nets.append(one.net.network)
            positive.append(shown)
            negative.append(shown.off(n) if one.guess else shown)
        sides = (replace(side, hints=tuple(hints)) for side, hints in ((cond.positive, positive), (cond.negative, negative)))
        network = control.Controlled(self.networks["network"], nets, steady=self.device.type == "cpu")
        return replace(cond, **dict(zip(("positive", "negative"), sides, strict=True))), network

    def _shown(self, one: Control, asked: Request, n: int) -> Tensor:
        """A hint as its net wants it: pixels in 0..1, or for SD 3's nets their latents."""
        hint = inputs.stack(one.image, n, asked.height, asked.width, "control image").to(self.device)
        if not one.net.latents:
            return hint
        stage = self.stage()
        return torch.cat([one.net.shown(stage, row) for row in hint.split(1)])


def _streams(asked: Request) -> Streams:
    """The seeds' own; a model that takes over must not draw again what the first one drew."""
    handed = 0 if asked.get("denoising_start") is None else HANDED_OVER
    return Streams(tuple(seed ^ handed for seed in asked.seeds))


def _to_latents(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of pixels on the grid of the state, the nearest pixel of each cell."""
    return F.interpolate(mask, size=like.shape[2:], mode="nearest")


def _noised(plan: Plan, x0: Tensor, unit: Tensor) -> Tensor:
    first = plan.levels[0]
    return first.alpha * x0.to(unit) + first.sigma * unit


def part(plan: Plan, asked: Request, image: bool) -> Plan:
    """The steps of the plan that the request wants. Raises ArgumentError where none are left.

    strength s of n steps: the last max(1, floor(n s)). denoising_start and denoising_end are shares of the table, SDXL's hand-over from
    base to refiner: the base asks where the timestep is at least round(1000 (1 - end)), the refiner from there on.
    """
    begin, end, levels = asked.get("denoising_start"), asked.get("denoising_end"), plan.levels
    if end is not None:
        levels = levels[: _cut(plan, end) + 1]
    if begin is not None:
        levels = levels[_cut(plan, begin) :]
    elif image:
        n = len(levels) - 1
        levels = levels[n - max(1, min(int(n * asked.get("strength")), n)) :]
    if len(levels) < 2:
        raise ArgumentError(f"got denoising_start {begin} and denoising_end {end}: they leave none of {len(plan.levels) - 1} steps")
    return replace(plan, levels=levels)


def _cut(plan: Plan, share: float) -> int:
    """The first level that is left to the model that comes after this share of the denoising."""
    told = plan.schedule.timestep(torch.tensor([level.t for level in plan.levels[:-1]], dtype=torch.float64)).tolist()
    return next((i for i, value in enumerate(told) if value < round(1000 * (1 - share))), len(told))
