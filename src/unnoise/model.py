"""Model: load, encode, sample, decode. Text comes in, pictures go out, and everything that makes them again comes with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unnoise import __version__
from unnoise.checkpoints import native
from unnoise.checkpoints.specs import ModelSpec
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, sampling
from unnoise.diffusion.guidance import Guidance, Guided, guidance
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.sampling import Plan, Run
from unnoise.errors import ArgumentError, UnknownName
from unnoise.networks.drafts import condition
from unnoise.networks.tokenizers import Tokenizer
from unnoise.request import Request, request
from unnoise.runtime import devices
from unnoise.runtime.denoise import NetworkDenoiser

BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class Result:
    """Pictures, and what made each of them."""

    images: list[Image.Image] | np.ndarray | Tensor  # by output_type; numpy (b, h, w, 3) and pt (b, 3, h, w) in 0..1
    latents: Tensor  # (b, c, h, w) the final state
    seeds: list[int]
    metadata: list[dict[str, Any]]  # one a picture; `arguments` turns it into what makes the picture again


@dataclass(frozen=True)
class Progress:
    """A step of `Model.stream`, done."""

    step: int  # steps taken
    steps: int
    latents: Tensor  # (b, c, h, w) the current state
    x0: Tensor  # the current estimate of the picture
    request: Request
    model: Model

    def preview(self) -> list[Image.Image]:
        """The pictures as the model sees them now."""
        return self.model.to_pil(self.x0)

    def result(self) -> Result:
        """What `generate` returns; meant for the last step."""
        asked = self.request
        shape = {"pil": self.model.to_pil, "numpy": _to_numpy, "pt": _to_unit, "latent": lambda x: x}
        return Result(shape[asked.output_type](self.latents), self.latents, list(asked.seeds), self.model.describe(asked))


class Model:
    """A text-to-image model, ready to run. Made by `load`; holds no state that a call changes, so threads may share it."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer, networks: nn.ModuleDict, *, file: Path | None = None):
        self.spec, self.tokenizer, self.networks, self.file = spec, tokenizer, networks, file
        self.schedule = spec.schedule.build()
        self.prediction = predictions.prediction(spec.prediction)
        # On a CPU a picture never depends on its batch. The price: a single picture without guidance is computed twice.
        rows = 2 if self.device.type == "cpu" else None
        denoiser = NetworkDenoiser(networks["network"], self.schedule, self.prediction, rows)
        self.denoiser = Guided(denoiser, self.schedule, self.prediction)

    @property
    def device(self) -> torch.device:
        return next(self.networks.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.networks.parameters()).dtype

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits that name the weights; "" for a model that came from no file."""
        return native.file_hash(self.file) if self.file else ""

    def encode(self, prompts: Sequence[str], height: int, width: int) -> Cond:
        """Prompts as the network wants them for pictures of this size, one row each."""
        ids = self.tokenizer(prompts).ids.to(self.device)
        # one by one: the same bits in any batch
        return Cond.stack([condition(self.networks["text_encoder"](row[None]), height, width) for row in ids])

    def generate(self, prompt: str | Sequence[str], **arguments: Any) -> Result:
        """Pictures of a prompt, or of each of several. The arguments are those of `stream`."""
        return deque(self.stream(prompt, **arguments), maxlen=1).pop().result()

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        sampler_options: dict[str, Any] | None = None,
        spacing: str | None = None,
        spacing_options: dict[str, Any] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        **unknown: Any,
    ) -> Iterator[Progress]:
        """The same as `generate`, step by step; leaving the loop cancels. None means the model's own default.

        guidance_scale: 1 is the prompt alone with half the evaluations, 0 ignores it. guidance_interval: shares of noise, 0 clean and 1
        pure noise, between which guidance acts. seed: picture i takes seed + i; None draws one. latents: unit-variance noise (b, c, h, w)
        instead of the seeds' own. sampler_options: such as {"eta": 0.5} for ddim; spacing_options: such as {"ending": "first"}.
        output_type: "pil", "numpy", "pt" or "latent". Wrong values raise ArgumentError before anything runs.
        """
        asked = request(self.spec, **{key: value for key, value in locals().items() if key not in ("self", "unknown")}, unknown=unknown)
        return self._stream(asked, self._start(asked, latents))

    @torch.no_grad()
    def _stream(self, asked: Request, latents: Tensor | None) -> Iterator[Progress]:
        for state in sampling.stream(self.run(asked, latents), self.denoiser):
            yield Progress(state.step, state.steps, state.x, state.x0, asked, self)

    def run(self, asked: Request, latents: Tensor | None = None) -> Run:
        """The trajectory of a request, for a driver that holds several."""
        plan = self.plan(asked)
        noise = Streams(asked.seeds)
        drawn = noise.draw(torch.empty(self._shape(asked), device=self.device))  # first also where it is not used: see `sample`
        given = self._start(asked, latents)
        return Run(sampling.initial(drawn if given is None else given, plan), plan, noise, self.guidance(asked))

    def _shape(self, asked: Request) -> tuple[int, ...]:
        return (len(asked.prompts), self.spec.channels, asked.height, asked.width)

    def _start(self, asked: Request, latents: Tensor | None) -> Tensor | None:
        """Latents of the caller's own, checked; None leaves them to the seeds."""
        if latents is None:
            return None
        shape = self._shape(asked)
        if not isinstance(latents, Tensor):
            raise ArgumentError(f"got latents of type {type(latents).__name__}: expected a tensor of shape {shape}")
        if latents.shape != shape or not latents.is_floating_point():
            raise ArgumentError(
                f"got latents of shape {tuple(latents.shape)} and {latents.dtype}: expected {shape} and a floating-point type"
            )
        if not bool(torch.isfinite(latents).all()):
            raise ArgumentError("got latents that are not finite: expected noise of unit variance")
        return latents.to(self.device, torch.float32)

    def plan(self, asked: Request) -> Plan:
        how = (asked.sampler, asked.steps, asked.spacing, None, dict(asked.spacing_options))
        return sampling.plan(self.schedule, *how, **dict(asked.sampler_options))

    def guidance(self, asked: Request) -> Guidance:
        positive, negative = (self.encode(texts, asked.height, asked.width) for texts in (asked.prompts, asked.negative_prompts))
        return guidance(positive, negative, asked.guidance_scale, rescale=asked.guidance_rescale, interval=asked.guidance_interval)

    def to_pil(self, x: Tensor) -> list[Image.Image]:
        """(b, 3, h, w) in -1..1 -> pictures."""
        pixels = (_to_numpy(x) * 255).round().astype(np.uint8)
        return [Image.fromarray(picture) for picture in pixels]

    def describe(self, asked: Request) -> list[dict[str, Any]]:
        """One record a picture, ready for JSON. "model" is the name, or the file's path just as `load` was given it, folders and all."""
        common = {
            "model": self.spec.name if self.file is None or self.file.parent == BUILTIN else str(self.file),
            "model_hash": self.hash,
            **asked.settings(),
            "version": __version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
        }
        rows = zip(asked.prompts, asked.negative_prompts, asked.seeds, self._dropped(asked), strict=True)
        return [{**common, "prompt": prompt, "negative_prompt": negative, "seed": seed, **cut} for prompt, negative, seed, cut in rows]

    def _dropped(self, asked: Request) -> list[dict[str, int]]:
        """Of each picture how many text tokens the model never saw; nothing where all fitted."""
        pairs = zip(*(self.tokenizer(texts).dropped for texts in (asked.prompts, asked.negative_prompts)), strict=True)
        return [{"dropped_tokens": sum(pair)} if any(pair) else {} for pair in pairs]

    def save(self, path: str | Path) -> None:
        """One .safetensors file, with everything `load` needs."""
        native.save(Path(path), self.spec, self.tokenizer, dict(self.networks.named_parameters()))


def arguments(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `load` (as "model") and `generate` are given to make a picture again from its record."""
    names = {"steps": "num_inference_steps"}
    unused = ("model_hash", "version", "dtype", "device", "dropped_tokens")
    return {names.get(key, key): value for key, value in metadata.items() if key not in unused}


def _to_unit(x: Tensor) -> Tensor:
    return ((x.float() + 1) / 2).clamp(0, 1)


def _to_numpy(x: Tensor) -> np.ndarray:
    return _to_unit(x).permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class ModelInfo:
    """A model that comes with the package."""

    name: str
    family: str
    summary: str
    parameters: int
    bytes: int


def models() -> list[ModelInfo]:
    """The models that come with the package."""
    return [_info(path) for path in sorted(BUILTIN.glob("*.safetensors"))]


def _info(path: Path) -> ModelInfo:
    spec = native.read_spec(path)
    parameters = sum(p.numel() for p in spec.build("meta").parameters())
    return ModelInfo(spec.name, spec.family, spec.summary, parameters, path.stat().st_size)


def load(model: str | Path = "emoji", *, dtype: str = "auto", device: str = "auto") -> Model:
    """A model by the name that `models` lists, or from a .safetensors file that unnoise saved.

    dtype: "auto" (float32 on a CPU, float16 elsewhere), "float32", "bfloat16", "float16". device: "auto", "cpu", "cuda", "cuda:1", "mps".
    Raises UnknownName, ArgumentError or FileError.
    """
    where = devices.device(device)
    path = _place(model)
    return Model(*native.load(path, devices.dtype(dtype, where), where), file=path)


def _place(model: str | Path) -> Path:
    """The file of a model: a path as it is, a name among those that come with the package."""
    expected = "a name that unnoise.models() lists, or the path of a .safetensors file"
    if not isinstance(model, str | Path):
        raise ArgumentError(f"got model {model!r}: expected {expected}")
    if Path(model).suffix == ".safetensors":
        return Path(model)
    path = BUILTIN / f"{model}.safetensors"
    if not path.is_file():
        raise UnknownName("model", str(model), [p.stem for p in BUILTIN.glob("*.safetensors")], f"expected {expected}")
    return path
