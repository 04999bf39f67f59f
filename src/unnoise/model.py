"""Model: load, encode, sample, decode. Text and pictures come in, pictures go out, and everything that makes them again comes with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unnoise import adapting, inputs
from unnoise.adapting import Adapted
from unnoise.checkpoints import native, save
from unnoise.diffusion import predictions, sampling
from unnoise.encoding import Encoder
from unnoise.errors import ArgumentError
from unnoise.families.spec import ModelSpec
from unnoise.images import pixels, previews
from unnoise.images import safety as checking
from unnoise.images.safety import SafetyChecker
from unnoise.inputs import Control
from unnoise.networks.tokenizers import Tokenizer
from unnoise.request import Request, request
from unnoise.runtime import first_stage
from unnoise.trajectory import Given, Trajectories
from unnoise.version import __version__

BUILTIN = Path(__file__).parent / "builtin"
BASE_ALONE = ("latents", "control", "image", "mask_image", "denoising_end", "strength")  # of two models the first one's business
PHOTOGRAPHIC = ("clip", "clip_penultimate", "sdxl", "refiner", "sd3", "bert")  # conditionings whose models draw photographs of anything


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
    given: Given
    base: Progress | None = None  # of a refiner's step: the last of the model before it, which the record is of

    def preview(self) -> list[Image.Image]:
        """The pictures as the model sees them now: a cheap look at latents, the pictures themselves where the model works on pixels."""
        return self.model.preview(self.x0)

    def result(self) -> Result:
        """What `generate` returns; meant for the last step."""
        made = self.model.finish(self.latents, self.request, self.given)
        if self.base is None:
            return made
        records = []
        for record, own in zip(self.base.model.describe(self.base.request, self.base.given), made.metadata, strict=True):
            said = {key: own[key] for key in ("decoded_in", "safety_checker") if key in own}
            records.append({**record, **said, "inputs": {**record.get("inputs", {}), "refiner": self.model.name}})
        return replace(made, metadata=records)


class Model:
    """A model, ready to run. Made by `load`; holds no state that a call changes, so threads may share it.

    networks: by the names of `ModelSpec.parts`. tokenizers: by the place of their text encoder; one alone is the first encoder's.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizers: Tokenizer | Mapping[str, Tokenizer],
        networks: nn.ModuleDict,
        *,
        file: Path | None = None,
        safety: SafetyChecker | None = None,
        told: Sequence[str] = (),
        words: Mapping[str, Tensor] | None = None,
        adapters: Sequence[str] = (),
    ):
        self.spec, self.networks, self.file, self.safety, self.told = spec, networks, file, safety, tuple(told)
        self.adapters = tuple(adapters)  # what was put on, for the record
        self.tokenizers = {"text_encoder": tokenizers} if isinstance(tokenizers, Tokenizer) else dict(tokenizers)
        self.schedule = spec.schedule.build()
        self.prediction = predictions.lcm(self.schedule) if spec.prediction == "lcm" else predictions.prediction(spec.prediction)
        self.encode = Encoder(spec, networks, self.tokenizers, words or {})
        self.trajectories = Trajectories(spec, networks, self.schedule, self.prediction, self.encode)
        self.denoiser = self.trajectories.guided(networks["network"])

    def __repr__(self) -> str:
        return f"Model({self.name!r}, family={self.spec.family!r}, dtype={self.dtype}, device={str(self.device)!r})"

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the first text encoder."""
        return self.tokenizers["text_encoder"]

    @property
    def device(self) -> torch.device:
        return self.trajectories.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.networks["network"].parameters()).dtype

    @property
    def name(self) -> str:
        """Of a model of the package or of none its name, else the path just as `load` was given it."""
        return self.spec.name if self.file is None or self.file.parent == BUILTIN else str(self.file)

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits that name the weights; "" for a model that came from no single file."""
        return native.file_hash(self.file) if self.file and self.file.is_file() else ""

    def generate(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Result:
        """Pictures of a prompt, or of each of several. The arguments are those of `stream`."""
        return deque(self.stream(prompt, **arguments), maxlen=1).pop().result()

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
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
        image: Any = None,
        strength: float | None = None,
        mask_image: Any = None,
        control: Control | Sequence[Control] | None = None,
        class_labels: int | Sequence[int] | None = None,
        classifier: nn.Module | None = None,
        classifier_scale: float = 1.0,
        skip_guidance_layers: Sequence[int] | None = None,
        skip_layer_guidance_scale: float = 2.5,
        skip_layer_guidance_start: float = 0.01,
        skip_layer_guidance_stop: float = 0.2,
        clip_skip: int = 0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        max_sequence_length: int | None = None,
        prompt_weights: bool = True,
        refiner: Model | None = None,
        lora: Any = None,
        safety: str = "black",
        **unknown: Any,
    ) -> Iterator[Progress]:
        """The same as `generate`, step by step; leaving the loop cancels. None means the model's own default.

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
        given = {key: value for key, value in locals().items() if key not in ("self", "unknown", "refiner", "lora")}
        if lora is not None:
            return self.with_lora(lora).stream(**given, refiner=refiner, **unknown)
        if refiner is not None:
            if not isinstance(refiner, Model):
                raise ArgumentError(f"got refiner of type {type(refiner).__name__}: expected a model that unnoise.load gave")
            return self._refined(refiner, given | unknown)
        tensors = {key: given.pop(key) for key in ("latents", "image", "mask_image", "control")}
        net = given["classifier"]
        if image is None and (strength is not None or mask_image is not None):
            raise ArgumentError("got strength or mask_image without an image: expected image=... to start from")
        if image is not None and strength is None and denoising_start is None:
            given["strength"] = 0.8 if mask_image is None else 1.0
        asked = request(self.spec, **given, unknown=unknown)
        return self._stream(asked, replace(self._given(asked, **tensors), classifier=net))

    def _refined(self, refiner: Model, arguments: dict[str, Any]) -> Iterator[Progress]:
        """The first steps by this model, the last by another of the same latents (Podell et al. 2023, section 2.5)."""
        share = 0.8 if arguments["denoising_end"] is None else arguments["denoising_end"]
        stages = [model.spec.first_stage for model in (self, refiner)]
        if None in stages or len({(stage.latent_channels, stage.scale, stage.shift) for stage in stages if stage}) > 1:
            raise ArgumentError(f"got {refiner.spec.name} as refiner of {self.spec.name}: expected a model of the same latents")
        if arguments["mask_image"] is not None or not (isinstance(share, int | float) and 0 < share < 1):
            raise ArgumentError(f"got refiner with mask_image or denoising_end {share!r}: expected no mask, and a share between 0 and 1")
        base = self.stream(**{**arguments, "denoising_end": share, "output_type": "latent"})
        own = {name: value for name, value in arguments.items() if name not in BASE_ALONE}
        own |= {"denoising_start": share, "output_type": arguments["output_type"]}
        refiner.stream(**own, image=None)  # refuses before the base has run
        return self._handed_over(base, refiner, own)

    def _handed_over(self, base: Iterator[Progress], refiner: Model, own: dict[str, Any]) -> Iterator[Progress]:
        last = None
        for last in base:
            yield last
        assert last is not None  # a trajectory has a step
        asked = last.request
        own |= {"seed": asked.seeds[0], "image": last.latents, "height": asked.height, "width": asked.width}
        own |= {"num_inference_steps": asked.steps, "guidance_scale": asked.guidance_scale}
        own |= {"sampler": asked.sampler, "spacing": asked.spacing}
        for state in refiner.stream(**own):
            yield replace(state, base=last)

    def _given(self, asked: Request, latents: Any = None, image: Any = None, mask_image: Any = None, control: Any = None) -> Given:
        """A request's pictures as tensors. Raises ArgumentError or FileError."""
        size = (len(asked.prompts), asked.height, asked.width)
        noise, controls = self._checked(asked, latents, "latents"), inputs.controls(control, self.networks["network"], self.spec.name)
        masks = None if mask_image is None else inputs.masks(mask_image, *size)
        if image is None or inputs.are_latents(image, self.spec.channels):
            return Given(noise, x0=self._checked(asked, image, "image"), mask=masks, controls=controls)
        return Given(noise, inputs.stack(image, *size), mask=masks, controls=controls)

    @torch.no_grad()
    def _stream(self, asked: Request, given: Given) -> Iterator[Progress]:
        run, denoiser = self.trajectories.begin(asked, given)
        for state in sampling.stream(run, denoiser):
            yield Progress(state.step, state.steps, state.x, state.x0, asked, self, given)

    def _checked(self, asked: Request, latents: Any, name: str) -> Tensor | None:
        """Latents of the caller's own; None leaves them to the seeds."""
        if latents is None:
            return None
        shape = self.trajectories.shape(asked)
        if not isinstance(latents, Tensor):
            raise ArgumentError(f"got {name} of type {type(latents).__name__}: expected a tensor of shape {shape}")
        if latents.shape != shape or not latents.is_floating_point():
            raise ArgumentError(
                f"got {name} of shape {tuple(latents.shape)} and {latents.dtype}: expected {shape} and a floating-point type"
            )
        if not bool(torch.isfinite(latents).all()):
            raise ArgumentError(f"got {name} that are not finite: expected noise of unit variance")
        return latents.to(self.device, torch.float32)

    @torch.no_grad()
    def finish(self, latents: Tensor, asked: Request, given: Given) -> Result:
        """Latents to what was asked for; what the mask leaves alone is the image's own to the byte."""
        records = self.describe(asked, given)
        if asked.output_type == "latent":
            return Result(latents, latents, list(asked.seeds), records)
        decoded = (
            first_stage.decode(self.trajectories.stage(), latents) if self.spec.first_stage else first_stage.Decoded(latents, self.dtype)
        )
        if decoded.dtype != self.dtype and self.spec.first_stage:
            records = [{**record, "decoded_in": str(decoded.dtype).removeprefix("torch.")} for record in records]
        exact = pixels.unit(decoded.pictures)
        pictures = [pixels.picture(row) for row in exact]
        if given.mask is not None and given.image is not None:
            pictures = [pixels.composed(*parts) for parts in zip(pictures, given.image, given.mask, strict=True)]
        pictures, records = self._judged(pictures, records, asked)
        if asked.output_type == "pil":
            return Result(pictures, latents, list(asked.seeds), records)
        if given.mask is not None or any(record.get("safety_checker") == "flagged" for record in records):
            exact = torch.stack([pixels.tensor(picture) for picture in pictures])
        images = exact if asked.output_type == "pt" else exact.permute(0, 2, 3, 1).cpu().numpy()
        return Result(images, latents, list(asked.seeds), records)

    def _judged(
        self, pictures: list[Image.Image], records: list[dict[str, Any]], asked: Request
    ) -> tuple[list[Image.Image], list[dict[str, Any]]]:
        """The safety checker's word on every photograph; where its weights are not there, that is said."""
        if self.spec.conditioning not in PHOTOGRAPHIC or asked.get("safety") == "off":
            return pictures, records
        if self.safety is None:
            return pictures, [{**record, "safety_checker": "absent"} for record in records]
        verdicts = self.safety(pictures)
        said = [
            {**record, "safety_checker": "flagged" if verdict.flagged else "passed"}
            for record, verdict in zip(records, verdicts, strict=True)
        ]
        return checking.act(asked.get("safety"), pictures, verdicts), said

    @torch.no_grad()
    def preview(self, x0: Tensor) -> list[Image.Image]:
        """A cheap look at an estimate: latents by a tiny autoencoder or by three factors a channel, pixels as they are."""
        if not self.spec.first_stage:
            return self.to_pil(x0)
        return previews.preview(x0, self.networks["preview"] if "preview" in self.networks else self.spec.family)

    def to_pil(self, x: Tensor) -> list[Image.Image]:
        """(b, 3, h, w) in -1..1 -> pictures."""
        return [pixels.picture(row) for row in pixels.unit(x)]

    def with_lora(self, adapters: Any, *, strict: bool = True) -> Model:
        """This model with adapters on: paths, or pairs of path and scale. The base weights are shared and stay as they are.

        strict: a file with keys that fit nowhere is refused. Raises FileError, also for another family's file.
        """
        return self._with(adapting.put_on(self.networks, self.tokenizers, self.encode.words, adapters, strict))

    def with_embedding(self, path: str | Path, word: str | None = None) -> Model:
        """This model knowing the word, or words, of a textual inversion file; word: another name for the only one."""
        return self._with(adapting.learned(self.networks, self.tokenizers, self.encode.words, path, word))

    def _with(self, adapted: Adapted) -> Model:
        record = {"file": self.file, "safety": self.safety, "told": (*self.told, *adapted.told)}
        adapters = (*self.adapters, *adapted.told)
        return Model(self.spec, adapted.tokenizers, adapted.networks, **record, words=adapted.words, adapters=adapters)

    def describe(self, asked: Request, given: Given | None = None) -> list[dict[str, Any]]:
        """One record a picture, ready for JSON. "model" is the name, or the path just as `load` was given it, folders and all.

        "inputs" names what no setting holds: pictures and noise by ten digits of their sha256, adapters by what they are.
        """
        common = {
            "model": self.name,
            "model_hash": self.hash,
            **asked.settings(),
            "version": __version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
        }
        named = {**(given.named() if given else {}), **({"adapters": list(self.adapters)} if self.adapters else {})}
        common |= {"inputs": named} if named else {}
        rows = zip(asked.prompts, asked.negative_prompts, asked.seeds, asked.labels, self._dropped(asked), strict=True)
        return [
            {
                **common,
                "prompt": prompt,
                "negative_prompt": negative,
                "seed": seed,
                **({} if label is None else {"class_labels": label}),
                **cut,
            }
            for prompt, negative, seed, label, cut in rows
        ]

    def _dropped(self, asked: Request) -> list[dict[str, int]]:
        """Of each picture how many text tokens the model never saw; nothing where all fitted."""
        cuts = [sum(map(self.encode.dropped, pair)) for pair in zip(*self.trajectories.wanted(asked), strict=True)]
        return [{"dropped_tokens": cut} if cut else {} for cut in cuts]

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


def arguments(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `load` (as "model") and `generate` are given to make a picture again from its record, beside what its "inputs" name."""
    names = {"steps": "num_inference_steps"}
    unused = ("model_hash", "version", "dtype", "device", "dropped_tokens", "decoded_in", "safety_checker", "inputs", "given")
    return {names.get(key, key): value for key, value in metadata.items() if key not in unused}
