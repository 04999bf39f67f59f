"""`unnoise generate`: pictures from text, a label or a picture; or again from what a picture carries."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from unnoise.cli import given, options, outputs, requests
from unnoise.cli.console import notice, print_json, progress
from unnoise.errors import ArgumentError


def generate(
    prompts: options.Prompts = None,
    model: options.Model = None,
    negative_prompt: options.Text = None,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    sampler_option: options.SamplerOption = None,
    spacing_option: options.SpacingOption = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_rescale: options.Rescale = None,
    guidance_interval: options.Interval = None,
    skip_layers: options.SkipLayers = None,
    skip_layer_scale: options.SkipScale = None,
    seed: options.Seed = None,
    size: options.Size = None,
    n: options.Number = None,
    image: options.Image = None,
    strength: options.Strength = None,
    mask: options.Mask = None,
    control: options.Control = None,
    lora: options.Lora = None,
    lora_dir: options.LoraDir = None,
    embedding: options.Embedding = None,
    label: options.Label = None,
    classifier: options.Classifier = None,
    classifier_scale: options.ClassifierScale = None,
    refiner: options.Refiner = None,
    denoising_end: options.End = None,
    clip_skip: options.ClipSkip = None,
    max_sequence_length: options.SequenceLength = None,
    no_prompt_weights: options.NoWeights = False,
    safety: options.Safety = None,
    variant: options.Variant = None,
    part: options.Part = None,
    prediction: options.Prediction = None,
    out: options.Out = Path("outputs"),
    again: options.Again = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: options.Json = False,
    no_metadata: options.NoMetadata = False,
    quiet: options.Quiet = False,
) -> None:
    """Make pictures from text, a class or another picture.

    Every picture is a new file that carries its prompt, seed and settings; --from makes the same pixels again.
    """
    asked = requests.given(**locals())
    began = time.perf_counter()
    arguments, record = prepare(asked, again, lora_dir, quiet)
    outputs.check(out, outputs.pictures(arguments))
    result = run(arguments, place(dtype, device, record), quiet)
    pictures = outputs.save_all(result, out, keep_settings=not no_metadata)
    sheet = outputs.save_sheet(result, out)
    report = {"pictures": pictures, "sheet": sheet, "settings": common(result.metadata), "seconds": time.perf_counter() - began}
    for line in [*outputs.notes(result.metadata), *requests.differences(record, result.metadata[0])]:
        notice(f"note: {line}", quiet)
    if as_json:
        print_json(report)
    elif not quiet:
        tell(report)


def prepare(asked: dict, again: Path | None, lora_dir: Path | None, quiet: bool) -> tuple[dict, dict]:
    """The library's arguments, files as they were typed; and the record of the picture to make again (empty without one)."""
    record, exact = ({}, False) if again is None else requests.recorded(again)
    if again is None:
        asked = {"model": "emoji", **asked}
        check_prompts(asked, quiet)
    else:
        if not exact:
            notice(f"note: {str(again)!r} is from another program: the same settings, not the same pixels", quiet)
        from unnoise.pipeline.model import arguments

        asked, changes = requests.merge({**arguments(record), **record.get("given", {})}, asked, again)
        asked = {"model": "emoji", **asked}
        for change in changes:
            notice(f"note: {change}", quiet)
        requests.check_inputs(record, asked, again)
    return given.tagged(asked, lora_dir), record if exact else {}


def check_prompts(asked: dict, quiet: bool) -> None:
    """The built-in model draws from text; of any other the library says what it wants, once it is loaded."""
    prompts = asked.get("prompt", [])
    if not prompts and asked["model"] == "emoji":
        raise ArgumentError('got no prompt: expected unnoise generate "a red apple", or --from with a picture')
    if len(prompts) > 1 and not any(" " in prompt for prompt in prompts):
        notice(f"note: {len(prompts)} prompts of one word; quote a prompt of several words", quiet)


def place(dtype: str | None, device: str | None, record: dict) -> dict:
    """Precision and device: as asked, else as recorded (every machine has a CPU, not every one that GPU), else automatic."""
    recorded = "cpu" if record.get("device") == "cpu" else "auto"
    return {"dtype": dtype or record.get("dtype") or "auto", "device": device or recorded}


def run(arguments: dict, where: dict, quiet: bool) -> Any:
    """Load the model and sample, with a bar; returns the Result. Leaving by Ctrl-C leaves the loop, so at most one step is lost."""
    with progress(quiet) as show:
        show("loading", 0, None)
        model, rest = given.opened(arguments, where)
        for line in given.evidence(model):
            notice(line, quiet)
        for state in model.stream(**rest):
            show("sampling", state.step, state.steps)
        result = state.result()
    named = {"model": arguments["model"], **given.named(arguments)}
    return replace(result, metadata=[{**record, **named} for record in result.metadata])


def common(metadata: list[dict]) -> dict:
    """The effective settings that all pictures share."""
    return {key: value for key, value in metadata[0].items() if key not in ("prompt", "seed", "class_labels", "dropped_tokens")}


def tell(report: dict) -> None:
    """Paths and seeds on stdout, the settings on stderr."""
    for picture in report["pictures"]:
        print(f"{picture['path']}  seed {picture['seed']}")
    if report["sheet"]:
        print(f"{report['sheet']}  {len(report['pictures'])} pictures")
    used = report["settings"]
    notice(
        f"{used['model']}, {used['steps']} steps of {used['sampler']}, guidance {used['guidance_scale']:g}, "
        f"{used['width']}x{used['height']}, {used['device']} {used['dtype']}, {report['seconds']:.1f} s"
    )
