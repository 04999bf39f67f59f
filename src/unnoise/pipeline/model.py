"""Model: text and pictures come in, pictures go out, and everything that makes them again comes with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn

from unnoise.checkpoints import native, save
from unnoise.diffusion import predictions
from unnoise.diffusion.sampling import Run, advance
from unnoise.errors import ArgumentError
from unnoise.families.spec import ModelSpec
from unnoise.images import pixels, previews
from unnoise.images.safety import SafetyChecker
from unnoise.networks.tokenizers import Tokenizer
from unnoise.pipeline import adapters, inputs, records, stages
from unnoise.pipeline import start as starting
from unnoise.pipeline.arguments import Arguments
from unnoise.pipeline.conditionings import CONDITIONINGS
from unnoise.pipeline.encoding import Encoder
from unnoise.pipeline.inputs import Files, Inputs
from unnoise.pipeline.job import Job, resolve
from unnoise.pipeline.locating import BUILTIN
from unnoise.pipeline.request import Request
from unnoise.pipeline.stages import Progress, Result
from unnoise.pipeline.start import Parts
from unnoise.runtime.placement import Networks
from unnoise.version import __version__


class Model:
    """A model, ready to run. Made by `load`; holds no state that a call changes, so threads may share it.

    networks: by place, with their configs and their placement; or as `ModelSpec.build` makes them, on the CPU in float32.
    tokenizers: by the place of their text encoder; one alone is the first encoder's. files: what opens networks that a request names by
    path.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizers: Tokenizer | Mapping[str, Tokenizer],
        networks: Networks | nn.ModuleDict,
        *,
        file: Path | None = None,
        safety: SafetyChecker | None = None,
        evidence: Sequence[str] = (),
        words: Mapping[str, Tensor] | None = None,
        adapters: Sequence[str] = (),
        files: Files | None = None,
    ):
        self.spec, self.file, self.safety, self.evidence = spec, file, safety, tuple(evidence)
        self.networks = networks if isinstance(networks, Networks) else Networks(networks, {**spec.networks})
        self.adapters = tuple(adapters)  # what was put on, for the record
        self.files = files
        self.tokenizers = {"text_encoder": tokenizers} if isinstance(tokenizers, Tokenizer) else dict(tokenizers)
        self.schedule = spec.schedule.build()
        self.prediction = predictions.lcm(self.schedule) if spec.prediction == "lcm" else predictions.prediction(spec.prediction)
        self.encode = Encoder(spec, self.networks, self.tokenizers, CONDITIONINGS[spec.conditioning].row, words or {})
        self.parts = Parts(spec, self.networks, self.schedule, self.prediction, self.encode, self.adapters)
        self.denoiser = starting.denoiser(self.parts)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, family={self.spec.family!r}, dtype={self.dtype}, device={str(self.device)!r})"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first text encoder."""
        return self.tokenizers["text_encoder"]

    @property
    def device(self) -> torch.device:
        return self.networks.placement.device

    @property
    def dtype(self) -> torch.dtype:
        return self.networks.placement.dtype

    @property
    def name(self) -> str:
        """The name, for a built-in model or one made in memory; otherwise the path exactly as it was given to `load`."""
        return self.spec.name if self.file is None or self.file.parent == BUILTIN else str(self.file)

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits that name the weights; "" for a model that came from no single file."""
        return native.file_hash(self.file) if self.file and self.file.is_file() else ""

    def generate(self, prompt: str | Sequence[str] | None = None, **arguments: Unpack[Arguments]) -> Result:
        """Make pictures of a prompt, or of each of several. The arguments are the fields of `Request`; None is the model's own default.

        guidance_scale: 1 is the prompt alone with half the evaluations, 0 ignores it. guidance_interval: shares of noise, 0 clean and 1
        pure noise, between which guidance acts. seed: picture i takes seed + i; None draws one. latents: unit-variance noise (b, c, h, w)
        instead of the seeds' own. sampler_options: such as {"eta": 0.5} for ddim; spacing_options: such as {"ending": "first"}.
        output_type: "pil", "numpy", "pt" or "latent".

        image: to start from, as far from it as strength says (0..1); latents of another model with denoising_start, which takes over where
        that one had its denoising_end. mask_image: white is painted anew, black stays to the byte. control: `unnoise.Control`s.
        class_labels: of class-conditional models, or of a classifier (`unnoise.load_classifier`) that pulls towards them. The four of skip
        layers: [7, 8, 9] for Stable Diffusion 3.5 medium. clip_skip: text layers of the prompt left out, as in diffusers. original_size,
        crops_coords_top_left, target_size (height first) and the scores: what SDXL is told. max_sequence_length: of T5's tokens.
        prompt_weights: whether "(x:1.2)" is a weight. refiner: a model that takes over at denoising_end (0.8). lora: paths, or pairs of
        path and scale. safety: what becomes of flagged pictures. Wrong values raise ArgumentError before anything runs.
        """
        last = None
        for state in self.answer(self.request(prompt, **arguments)):
            last = state
        if last is None:
            raise ArgumentError("got a request that takes no step")
        return last.result()

    def stream(self, prompt: str | Sequence[str] | None = None, **arguments: Unpack[Arguments]) -> Iterator[Progress]:
        """Do the same as `generate`, step by step; leaving the loop cancels."""
        return self.answer(self.request(prompt, **arguments))

    def request(self, prompt: str | Sequence[str] | None = None, **arguments: Unpack[Arguments]) -> Request:
        """Check the arguments of `generate` as far as that needs no model. Raises UnknownName or ArgumentError."""
        return Request(prompt=prompt, **arguments)

    def answer(self, asked: Request) -> Iterator[Progress]:
        """Answer a request step by step. Everything is checked before this returns. Raises ArgumentError, UnknownName or FileError."""
        if asked.lora is not None:
            adapted = self.with_lora(asked.lora)
            return (replace(state, asked=asked) for state in adapted.answer(asked.changed(lora=None)))
        if asked.refiner is not None:
            request = inputs.opened(asked, self.files)
            return stages.refined(self, request.refiner, request)
        job = self.resolve(asked)
        return self._steps(asked, job, self.read(job))

    def resolve(self, asked: Request) -> Job:
        """Open what a request names by its file, and fill in this model's defaults. Raises ArgumentError, UnknownName or FileError."""
        return resolve(inputs.opened(asked, self.files), self.spec)

    @torch.no_grad()
    def _steps(self, asked: Request, job: Job, given: Inputs) -> Iterator[Progress]:
        run = self.start(job, given)
        while not run.done:
            state = advance([run], self.denoiser)[0]
            if isinstance(state, Exception):
                raise state
            if state is not None:
                yield Progress(state.step, state.steps, state.x, state.x0, asked, job, self, given)

    def start(self, job: Job, given: Inputs | None = None) -> Run:
        """Begin a trajectory: encode text and pictures, and return a Run that `advance([run, ...], model.denoiser)` carries on."""
        return starting.start(self.parts, starting.encode(self.parts, job, self.read(job) if given is None else given))

    def read(self, job: Job) -> Inputs:
        """Read a job's pictures as tensors. Raises ArgumentError or FileError."""
        request, size = job.request, (len(job), job.height, job.width)
        noise, controls = self._checked(job, request.latents, "latents"), tuple(request.control or ())
        inputs.check_controls(controls, self.networks, self.spec.name)
        masks = None if request.mask_image is None else inputs.masks(request.mask_image, *size)
        if request.image is None or inputs.are_latents(request.image, self.spec.channels):
            return Inputs(noise, x0=self._checked(job, request.image, "image"), mask=masks, controls=controls)
        return Inputs(noise, inputs.stack(request.image, *size), mask=masks, controls=controls)

    def _checked(self, job: Job, latents: Any, name: str) -> Tensor | None:
        """Latents of the caller's own; None leaves them to the seeds."""
        if latents is None:
            return None
        shape = self.parts.shape(job)
        if not isinstance(latents, Tensor):
            raise ArgumentError(f"got {name} of type {type(latents).__name__}: expected a tensor of shape {shape}")
        if latents.shape != shape or not latents.is_floating_point():
            raise ArgumentError(
                f"got {name} of shape {tuple(latents.shape)} and {latents.dtype}: expected {shape} and a floating-point type"
            )
        if not bool(torch.isfinite(latents).all()):
            raise ArgumentError(f"got {name} that are not finite: expected noise of unit variance")
        return latents.to(self.device, torch.float32)

    def finish(self, latents: Tensor, job: Job, given: Inputs, asked: Request | None = None) -> Result:
        """Decode the final state to what the job asks for. asked: the request as it was given, for the record."""
        return stages.finished(self.parts, self.safety, latents, job, given, self.describe(job, asked))

    @torch.no_grad()
    def preview(self, x0: Tensor) -> list[Image.Image]:
        """Return a cheap look at an estimate: latents by a tiny autoencoder or by three factors a channel, pixels as they are."""
        if not self.spec.first_stage:
            return self.to_pil(x0)
        if "preview" not in self.networks:
            return previews.preview(x0, self.spec.family)
        with self.networks.on("preview") as network:
            return previews.decoded(x0, network, self.networks.placement)

    def to_pil(self, x: Tensor) -> list[Image.Image]:
        """Turn (b, 3, h, w) in -1..1 into pictures."""
        return [pixels.picture(row) for row in pixels.unit(x)]

    def with_lora(self, lora: Any, *, strict: bool = True) -> Model:
        """Return this model with adapters on: paths, or pairs of path and scale. The base weights are shared and stay as they are.

        strict: a file with keys that fit nowhere is refused. Raises FileError, also for another family's file.
        """
        return self._with(adapters.put_on(self.networks, self.tokenizers, self.encode.words, lora, strict))

    def with_embedding(self, path: str | Path, word: str | None = None) -> Model:
        """Return this model knowing the word, or words, of a textual inversion file; word: another name for the only one."""
        return self._with(adapters.learned(self.networks, self.tokenizers, self.encode.words, path, word))

    def _with(self, adapted: adapters.Adapted) -> Model:
        return Model(
            self.spec,
            adapted.tokenizers,
            adapted.networks,
            file=self.file,
            safety=self.safety,
            evidence=(*self.evidence, *adapted.evidence),
            words=adapted.words,
            adapters=(*self.adapters, *adapted.evidence),
            files=self.files,
        )

    def describe(self, job: Job, asked: Request | None = None) -> list[dict[str, Any]]:
        """Return one record a picture, ready for JSON; see `records.py`. asked: the request as it was given, with paths and not objects."""
        made = {
            "model": self.name,
            "model_hash": self.hash,
            "version": __version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            **({"adapters": list(self.adapters)} if self.adapters else {}),
        }
        dropped = CONDITIONINGS[self.spec.conditioning].dropped
        cuts = [sum(dropped(self.encode, side) for side in pair) for pair in zip(*starting.captions(job), strict=True)]
        rows = zip(records.records(job, asked or job.request), cuts, strict=True)
        return [{**made, **record, **({"dropped_tokens": cut} if cut else {})} for record, cut in rows]

    def save(self, path: str | Path, layout: str | None = None) -> None:
        """Write the model, whole or not at all.

        layout: "unnoise", one .safetensors file with everything `load` needs; "diffusers", a folder; "ldm", a single file of CompVis' or
        Stability AI's form; "dit", facebook's. None: a folder where the path is no .safetensors file, else the family's own file.
        Raises ArgumentError for a model that a layout cannot hold, FileError where it cannot be written.
        """
        layout = layout or save.usual_layout(Path(path), self.spec)
        if layout != "unnoise":
            if self.encode.words:
                raise ArgumentError("this model knows words of textual inversion, which no layout holds: save the one without them")
            save.model(path, self.spec, self.networks, layout, tokenizers=self.tokenizers, source=self.file)
            return
        if len(self.tokenizers) != 1:
            raise ArgumentError(f"layout 'unnoise' holds one tokenizer, {self.spec.name} has {len(self.tokenizers)}: use another layout")
        native.save(Path(path), self.spec, self.tokenizer, dict(self.networks.named_parameters()))
