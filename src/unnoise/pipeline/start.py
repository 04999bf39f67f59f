"""The start of a trajectory: what is encoded before it, and the Run that an engine advances.

image           the last `strength` of the steps, from the image noised to the first of them
mask            a model of nine channels is shown mask and masked image; any other keeps the image outside the mask at every estimate
control         hints of ControlNets stand in the rows, so that requests with unlike nets share a forward
denoising_end   the steps stop where another model takes over, which starts with denoising_start from the latents
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unnoise.conditioning import Cond, Hint
from unnoise.diffusion import sampling
from unnoise.diffusion.guidance import Guided, Weak, guidance
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.sampling import Plan, Run, initial
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError
from unnoise.families.spec import ModelSpec
from unnoise.pipeline import inputs
from unnoise.pipeline.encoding import Caption, Encoder, Sizes
from unnoise.pipeline.inputs import Control, Inputs
from unnoise.pipeline.job import Job
from unnoise.runtime import control, first_stage
from unnoise.runtime.denoise import NetworkDenoiser
from unnoise.runtime.guides import Ask, Keep, Lane, Pull, Steered
from unnoise.runtime.placement import Networks

HANDED_OVER = 0x5DEECE66D  # any number: it parts the streams of two models with one seed
SMALL = 50_000_000  # parameters: below, two rows at once are hardly slower than one


@dataclass(frozen=True)
class Parts:
    """What every run of one model shares."""

    spec: ModelSpec
    networks: Networks
    schedule: Schedule
    prediction: Prediction
    encoder: Encoder
    adapters: tuple[str, ...] = ()  # merged into the weights

    @property
    def device(self) -> torch.device:
        return self.networks.placement.device

    def shape(self, job: Job) -> tuple[int, ...]:
        """Return the shape of the state, (b, c, h, w)."""
        return (len(job), self.spec.channels, job.height // self.spec.factor, job.width // self.spec.factor)

    def stage(self) -> first_stage.Stage:
        """Return the autoencoder. Raises ArgumentError where the model's file had none."""
        if "autoencoder" not in self.networks:
            raise ArgumentError(f"this {self.spec.name} has no autoencoder: load it with parts={{'autoencoder': FILE}}, or ask for latents")
        return first_stage.Stage(self.networks)


def rows_of(networks: Networks) -> int | None:
    """How many rows a forward sees: on a CPU a fixed number, so that a picture never depends on its batch; elsewhere all at once.

    A large network is asked row by row; a small one for two at once, which costs little more than one.
    """
    if networks.placement.device.type != "cpu":
        return None
    return 1 if sum(p.numel() for p in networks["network"].parameters()) > SMALL else 2


def denoiser(parts: Parts) -> Steered:
    """Build the model's one denoiser, which answers any rows."""
    networks = parts.networks
    network = NetworkDenoiser(
        networks["network"],
        parts.schedule,
        parts.prediction,
        rows_of(networks),
        networks.placement.dtype,
        networks.config("network"),
    )
    return Steered(Guided(network, parts.schedule, parts.prediction, parts.spec.guided_channels), parts.schedule)


@dataclass(frozen=True)
class Encoded:
    """A job with everything encoded: what `start` needs, and nothing that takes a network."""

    job: Job
    positive: Cond
    negative: Cond
    noise: Streams  # behind the draws that encoding took
    unit: Tensor  # (b, c, h, w) noise of unit variance
    x0: Tensor | None  # the state to start from
    keep: Keep | None
    hints: tuple[tuple[Control, Tensor], ...] = ()  # each with what its net is shown


@torch.no_grad()
def encode(parts: Parts, job: Job, given: Inputs) -> Encoded:
    """Encode text and pictures. Raises ArgumentError for pictures that the model lacks or cannot take, NonFiniteError."""
    shape = torch.empty(parts.shape(job), device=parts.device)
    noise = _streams(job)
    drawn = noise.draw(shape)  # first also where it is not used: see `sampling.sample`
    x0 = _encoded(parts, given.image, noise, shape) if given.x0 is None else given.x0
    positive, negative = _sides(parts, job)
    if parts.spec.extra_channels:
        extra = _extra_channels(parts, job, given, noise, shape)
        positive, negative = replace(positive, concat=extra), replace(negative, concat=extra)
    keep = None
    if given.mask is not None and x0 is not None and "mask" not in parts.spec.extra_channels:
        keep = Keep(x0, _to_latents(given.mask, shape).to(parts.device))
    hints = tuple((one, _shown(parts, one, job)) for one in given.controls)
    _check_handed_over(job, given, x0)
    return Encoded(job, positive, negative, noise, drawn if given.latents is None else given.latents, x0, keep, hints)


def start(parts: Parts, encoded: Encoded) -> Run:
    """Begin a trajectory: cheap, no network is asked. Raises ArgumentError where the request leaves no steps."""
    job, unit, x0 = encoded.job, encoded.unit, encoded.x0
    plan = part(plan_of(parts, job), job, x0 is not None)
    rows = _with_hints(parts, encoded, plan)
    options = {"rescale": job.request.guidance_rescale, "interval": job.guidance_interval}
    scale = 1.0 if parts.spec.guidance_distilled else job.guidance_scale
    guided = replace(guidance(*rows, scale, **options), weak=_weak(parts, rows[0], job, plan))
    x = _state(plan, job, unit, x0, encoded.keep is not None or job.request.mask_image is not None)
    if encoded.keep is not None:
        x = torch.where(encoded.keep.mask > 0, x, _noised(plan, encoded.keep.x0, unit))
    ask = Ask(guided, encoded.keep, _pulls(parts, job, rows[0]), Lane(parts.adapters, tuple(x.shape[1:])))
    return Run(x, plan, encoded.noise, ask)


def plan_of(parts: Parts, job: Job) -> Plan:
    """Return all steps of the grid."""
    how = (job.sampler, job.steps, job.spacing, None, dict(job.spacing_options))
    return sampling.plan(parts.schedule, *how, **dict(job.sampler_options))


def captions(job: Job) -> tuple[list[Caption], list[Caption]]:
    """Return both sides of every picture in words."""
    positive = [_caption(job, text, label) for text, label in zip(job.prompts, job.labels, strict=True)]
    return positive, [_caption(job, text, None, negative=True) for text in job.negative_prompts]


def _caption(job: Job, text: str | None, label: int | None, *, negative: bool = False) -> Caption:
    request, size = job.request, (job.height, job.width)
    score = request.negative_aesthetic_score if negative else request.aesthetic_score
    sizes = Sizes(request.original_size or size, request.crops_coords_top_left or (0, 0), request.target_size or size, score)
    skip = 0 if negative else request.clip_skip  # as in diffusers, for the prompt alone
    return Caption(text, *size, sizes, label, skip, request.prompt_weights, request.max_sequence_length)


def _sides(parts: Parts, job: Job) -> tuple[Cond, Cond]:
    """Conditions of the prompts and of the negative prompts; without guidance the second are never asked, and cost nothing."""
    positive, negative = captions(job)
    rows = parts.encoder(positive)
    if parts.spec.guidance_distilled:
        rows = replace(rows, guidance=torch.full((len(job),), job.guidance_scale).to(parts.device))
        return rows, rows
    return rows, rows if job.guidance_scale == 1 else parts.encoder(negative)


def _encoded(parts: Parts, image: Tensor | None, noise: Streams, shape: Tensor) -> Tensor | None:
    """An image's latents; of a model in pixels the image itself."""
    if image is None or "low_res" in parts.spec.extra_channels:
        return None
    x = 2 * image.to(parts.device) - 1
    return parts.stage().encode(x, noise.draw(shape)) if parts.spec.first_stage else x


def _check_handed_over(job: Job, given: Inputs, x0: Tensor | None) -> None:
    if job.request.denoising_start is not None and (x0 is None or given.image is not None or given.mask is not None):
        raise ArgumentError("got denoising_start: expected as image the latents of a model that had denoising_end, and no mask")


def _extra_channels(parts: Parts, job: Job, given: Inputs, noise: Streams, shape: Tensor) -> Tensor:
    """What joins x in the models that are shown more than x, the same on both sides."""
    makers: dict[str, Callable[[], Tensor]] = {
        "mask": lambda: _to_latents(_mask(parts, given), shape),
        "masked_image": lambda: _masked(parts, given, noise, shape),
        "low_res": lambda: _low_res(parts, given, job),
    }
    for name in parts.spec.extra_channels:
        if name not in makers:
            raise ArgumentError(f"{parts.spec.name} wants a {name} map, which generate cannot give it yet: use another model")
    return torch.cat([makers[name]().to(parts.device) for name in parts.spec.extra_channels], dim=1)


def _mask(parts: Parts, given: Inputs) -> Tensor:
    if given.mask is None or given.image is None:
        raise ArgumentError(f"{parts.spec.name} paints into a picture: give image and mask_image")
    return given.mask


def _masked(parts: Parts, given: Inputs, noise: Streams, shape: Tensor) -> Tensor:
    """Latents of the image with its masked part gray."""
    mask = _mask(parts, given)
    image = mask.new_zeros(()) if given.image is None else given.image
    x = (2 * image - 1) * (mask < 0.5)
    return parts.stage().encode(x.to(parts.device), noise.draw(shape))


def _low_res(parts: Parts, given: Inputs, job: Job) -> Tensor:
    if given.image is None:
        raise ArgumentError(f"{parts.spec.name} enlarges a picture: give it as image")
    return F.interpolate(2 * given.image - 1, size=(job.height, job.width), mode="bilinear")


def _shown(parts: Parts, one: Control, job: Job) -> Tensor:
    """A hint as its net wants it: pixels in 0..1, or for Stable Diffusion 3's nets their latents."""
    hint = inputs.stack(one.shown(), len(job), job.height, job.width, "control image").to(parts.device)
    if not one.net.latents:
        return hint
    parts.stage()
    return torch.cat([one.net.shown(parts.networks, row) for row in hint.split(1)])


def _with_hints(parts: Parts, encoded: Encoded, plan: Plan) -> tuple[Cond, Cond]:
    """Both sides with the hints of the ControlNets; in guess mode the negative side does not see them."""
    times, of_positive, of_negative = [level.t for level in plan.levels], [], []
    for one, image in encoded.hints:
        acts = control.window(parts.schedule, times, one.start, one.end)
        guess = "power" if one.guess else None
        hint = control.hint(one.net.network, image, one.scale, config=one.net.sizes, acts=acts, guess=guess)
        of_positive.append(hint)
        of_negative.append(hint.off(len(hint)) if one.guess else hint)
    return _hinted(encoded.positive, of_positive), _hinted(encoded.negative, of_negative)


def _hinted(cond: Cond, hints: Sequence[Hint]) -> Cond:
    return replace(cond, hints=tuple(hints)) if hints else cond


def _weak(parts: Parts, positive: Cond, job: Job, plan: Plan) -> Weak | None:
    """Skip-layer guidance (Stable Diffusion 3.5 medium): away from the same network without some of its blocks, in a part of the steps.

    The authors have a scale of 2.5 and blocks 7, 8 and 9, in the steps k with .01 n < k < .2 n of n, as they and diffusers count.
    """
    request, depth = job.request, parts.spec.joint_blocks
    if request.skip_guidance_layers is None:
        return None
    times, n = [level.t for level in plan.levels], len(plan.levels) - 1
    acting = [k for k in range(n) if request.skip_layer_guidance_start * n < k < request.skip_layer_guidance_stop * n]
    low, high = (times[acting[-1] + 1], times[acting[0]]) if acting else (torch.inf, torch.inf)
    skip = torch.zeros(len(job), depth, dtype=torch.bool)
    skip[:, list(request.skip_guidance_layers)] = True
    scale, low, high = (torch.full((len(job),), value, dtype=torch.float64) for value in (request.skip_layer_guidance_scale, low, high))
    return Weak(replace(positive, skip=skip), scale, low, high)


def _pulls(parts: Parts, job: Job, positive: Cond) -> tuple[Pull, ...]:
    classifier = job.request.classifier
    if classifier is None:
        return ()
    scale = torch.full((len(job),), job.request.classifier_scale, dtype=torch.float64)
    rows = 1 if parts.device.type == "cpu" else None
    return (Pull(classifier.network, scale, positive.need("labels", "classifier"), classifier.placement.dtype, rows),)


def _state(plan: Plan, job: Job, unit: Tensor, x0: Tensor | None, masked: bool) -> Tensor:
    """The state at the first level: noise, or a picture and noise, or what another model left."""
    if job.request.denoising_start is not None and x0 is not None:
        return x0.to(unit.device)
    all_new = masked and job.strength == 1
    return initial(unit, plan) if x0 is None or all_new else _noised(plan, x0, unit)


def _streams(job: Job) -> Streams:
    """The seeds' own; a model that takes over must not draw again what the first one drew."""
    handed = 0 if job.request.denoising_start is None else HANDED_OVER
    return Streams(tuple(seed ^ handed for seed in job.seeds))


def _to_latents(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of pixels on the grid of the state, the nearest pixel of each cell."""
    return F.interpolate(mask, size=like.shape[2:], mode="nearest")


def _noised(plan: Plan, x0: Tensor, unit: Tensor) -> Tensor:
    first = plan.levels[0]
    return first.alpha * x0.to(unit) + first.sigma * unit


def part(plan: Plan, job: Job, image: bool) -> Plan:
    """Return the steps of the plan that the job wants. Raises ArgumentError where none are left.

    strength s of n steps: the last max(1, floor(n s)). denoising_start and denoising_end are shares of the table, SDXL's hand-over from
    base to refiner: the base asks where the timestep is at least round(1000 (1 - end)), the refiner from there on.
    """
    begin, end, levels = job.request.denoising_start, job.request.denoising_end, plan.levels
    if end is not None:
        levels = levels[: _cut(plan, end) + 1]
    if begin is not None:
        levels = levels[_cut(plan, begin) :]
    elif image:
        n = len(levels) - 1
        levels = levels[n - max(1, min(int(n * job.strength), n)) :]
    if len(levels) < 2:
        raise ArgumentError(f"got denoising_start {begin} and denoising_end {end}: they leave none of {len(plan.levels) - 1} steps")
    return replace(plan, levels=levels)


def _cut(plan: Plan, share: float) -> int:
    """Index of the first level that the second model takes, when the first one does `share` of the denoising."""
    timesteps = plan.schedule.timestep(torch.tensor([level.t for level in plan.levels[:-1]], dtype=torch.float64)).tolist()
    return next((i for i, value in enumerate(timesteps) if value < round(1000 * (1 - share))), len(timesteps))
