"""The fields of `Request` but for the prompt, for editors and type checkers. A test compares the two."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from torch import Tensor

from unnoise.pipeline.classifiers import ClassifierModel
from unnoise.pipeline.inputs import Control
from unnoise.pipeline.request import OutputType, Safety
from unnoise.pipeline.stages import AnyModel

Path = str | os.PathLike[str]
Picture = Image.Image | np.ndarray | Tensor | Path | bytes
Lora = Path | tuple[Path, float]


class Arguments(TypedDict, total=False):
    """What `generate` and `stream` take beside the prompt; `Request` says what each field means."""

    negative_prompt: str | Sequence[str] | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    sampler: str | None
    sampler_options: Mapping[str, Any] | None
    spacing: str | None
    spacing_options: Mapping[str, Any] | None
    height: int | None
    width: int | None
    num_images_per_prompt: int
    seed: int | None
    latents: Tensor | None
    output_type: OutputType
    image: Picture | Sequence[Picture] | None
    strength: float | None
    mask_image: Picture | Sequence[Picture] | None
    control: Control | Sequence[Control] | None
    class_labels: int | Sequence[int] | np.ndarray | Tensor | None
    classifier: ClassifierModel | Path | None
    classifier_scale: float
    skip_guidance_layers: Sequence[int] | None
    skip_layer_guidance_scale: float
    skip_layer_guidance_start: float
    skip_layer_guidance_stop: float
    clip_skip: int
    original_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int] | None
    aesthetic_score: float
    negative_aesthetic_score: float
    denoising_start: float | None
    denoising_end: float | None
    max_sequence_length: int | None
    prompt_weights: bool
    refiner: AnyModel | Path | None
    lora: Lora | Sequence[Lora] | None
    safety: Safety
