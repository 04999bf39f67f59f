"""The options of `unnoise generate`: one line of help each, and the library's argument that each of them sets.

requests.py   text of an option -> value
given.py      what lies in files: the model, adapters, pictures, ControlNets
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw; quote each prompt.")]
Text = Annotated[str | None, typer.Option(help="What to keep out.")]

# The model
Model = Annotated[str | None, typer.Option(help="A name, a folder, a hub id owner/name or a .safetensors file.  [default: emoji]")]
Variant = Annotated[str | None, typer.Option(help="Of a folder's files, such as fp16.")]
Part = Annotated[list[str] | None, typer.Option(metavar="PLACE=FILE", help="A network from elsewhere: autoencoder=FILE; none leaves out.")]
Prediction = Annotated[str | None, typer.Option(help="eps, v, ... where the model's file does not tell.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.  [default: auto]")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.  [default: auto]")]
Lora = Annotated[list[str] | None, typer.Option(metavar="FILE[=SCALE]", help="A LoRA or its kin; may be given again.")]
LoraDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the files of <lora:name:0.8> in a prompt lie.")]
Embedding = Annotated[list[str] | None, typer.Option(metavar="FILE[=WORD]", help="A word by textual inversion; may be given again.")]
Refiner = Annotated[str | None, typer.Option(metavar="MODEL", help="The model that takes over for the last steps.")]
Classifier = Annotated[str | None, typer.Option(metavar="FILE", help="A classifier of noisy pictures, which pulls towards --label.")]

# How
Sampler = Annotated[str | None, typer.Option(help="A name from `unnoise samplers`.  [default: the model's]")]
Spacing = Annotated[str | None, typer.Option(help="How the steps lie in time.  [default: the sampler's]")]
SamplerOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the sampler, such as eta=0.5.")]
SpacingOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the spacing: ending=first.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.  [default: the model's]")]
Guidance = Annotated[float | None, typer.Option(help="How strongly to follow the prompt; 1 is none.  [default: the model's]")]
Rescale = Annotated[float | None, typer.Option(help="0 to 1: brings the contrast of strong guidance back.  [default: 0]")]
Interval = Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Shares of noise where guidance acts.  [default: the model's]")]
SkipLayers = Annotated[str | None, typer.Option(metavar="N,N,...", help="Blocks for skip-layer guidance, of Stable Diffusion 3.5: 7,8,9.")]
SkipScale = Annotated[float | None, typer.Option(help="How strong skip-layer guidance is.  [default: 2.5]")]
End = Annotated[float | None, typer.Option(help="Share of the denoising where the refiner takes over.  [default: 0.8]")]
ClassifierScale = Annotated[float | None, typer.Option(help="How strongly the classifier pulls.  [default: 1]")]

# What
Label = Annotated[list[int] | None, typer.Option(help="A class, of models without text; again for several pictures.")]
Image = Annotated[str | None, typer.Option(metavar="PICTURE", help="A picture to start from.")]
Strength = Annotated[float | None, typer.Option(help="How far from the picture, 0 to 1.  [default: 0.8; 1 with --mask]")]
Mask = Annotated[str | None, typer.Option(metavar="PICTURE", help="What is white in it is painted anew, the rest stays.")]
Control = Annotated[
    list[str] | None, typer.Option(metavar="NET=PICTURE[,...]", help="A ControlNet; then scale=, start=, end=, guess, hint=, model=.")
]
ClipSkip = Annotated[int | None, typer.Option(help="Layers of the text encoder left out.  [default: 0]")]
SequenceLength = Annotated[int | None, typer.Option(help="Tokens that T5 reads at most.")]
NoWeights = Annotated[bool, typer.Option("--no-prompt-weights", help="Brackets in prompts are text, no weights.")]
Seed = Annotated[int | None, typer.Option(help="The same seed makes the same picture; -1 is random.  [default: random]")]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Width and height in pixels.  [default: the model's]")]
Number = Annotated[int | None, typer.Option("--n", "-n", help="Pictures of each prompt.  [default: 1]")]
Safety = Annotated[str | None, typer.Option(help="What becomes of a flagged picture: black, blur, flag or off.  [default: black]")]

# Where to, and what is said
Out = Annotated[Path, typer.Option("--out", "-o", help="A folder, or one .png, .jpg or .webp file.")]
Again = Annotated[Path | None, typer.Option("--from", metavar="PICTURE", help="Make this picture again, from what it carries.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the files.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]

OPTIONS = {  # the library's argument: the option that sets it
    "model": "--model",
    "variant": "--variant",
    "parts": "--part",
    "prediction": "--prediction",
    "prompt": "PROMPT",
    "negative_prompt": "--negative-prompt",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "guidance_rescale": "--guidance-rescale",
    "guidance_interval": "--guidance-interval",
    "skip_guidance_layers": "--skip-layers",
    "skip_layer_guidance_scale": "--skip-layer-scale",
    "sampler": "--sampler",
    "spacing": "--spacing",
    "sampler_options": "--sampler-option",
    "spacing_options": "--spacing-option",
    "height": "--size (height)",
    "width": "--size (width)",
    "num_images_per_prompt": "--n",
    "seed": "--seed",
    "image": "--image",
    "strength": "--strength",
    "mask_image": "--mask",
    "control": "--control",
    "lora": "--lora",
    "embedding": "--embedding",
    "class_labels": "--label",
    "classifier": "--classifier",
    "classifier_scale": "--classifier-scale",
    "refiner": "--refiner",
    "denoising_end": "--denoising-end",
    "clip_skip": "--clip-skip",
    "max_sequence_length": "--max-sequence-length",
    "prompt_weights": "--no-prompt-weights",
    "safety": "--safety",
    "dtype": "--dtype",
    "device": "--device",
    "max_train_steps": "--max-train-steps",
}
