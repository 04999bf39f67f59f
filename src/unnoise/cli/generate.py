"""`unnoise generate`: pictures from text, or again from a picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from unnoise.cli import outputs, requests
from unnoise.cli.console import notice, print_json, progress
from unnoise.errors import ArgumentError


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw; quote each prompt.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `unnoise models` or a .safetensors file.  [default: emoji]")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep out.")] = None,
    sampler: Annotated[str | None, typer.Option(help="A name from `unnoise samplers`.  [default: the model's]")] = None,
    spacing: Annotated[str | None, typer.Option(help="How the steps lie in time.  [default: the sampler's]")] = None,
    sampler_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the sampler, such as eta=0.5.")
    ] = None,
    spacing_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the spacing: ending=first.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.  [default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option(help="How strongly to follow the prompt; 1 is none.  [default: the model's]")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same picture; -1 is random.  [default: random]")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Width and height in pixels.  [default: the model's]")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Pictures of each prompt.  [default: 1]")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder, or one .png, .jpg or .webp file.")] = Path("outputs"),
    again: Annotated[Path | None, typer.Option("--from", metavar="PICTURE", help="Make this picture again, from what it carries.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.  [default: auto]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.  [default: auto]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the files.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Make pictures from text.

    Every picture is a new file that carries its prompt, seed and settings; --from makes the same pixels again.
    """
    began = time.perf_counter()
    asked = requests.given(
        model=model,
        prompt=prompts or None,
        negative_prompt=negative_prompt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        sampler=sampler,
        spacing=spacing,
        sampler_options=requests.named_values("--sampler-option", sampler_option),
        spacing_options=requests.named_values("--spacing-option", spacing_option),
        size=size,
        num_images_per_prompt=n,
        seed=seed,
    )
    arguments, record = prepare(asked, again, quiet)
    outputs.check(out, len(prompts or [""]) * (n or 1))
    result = run(arguments, place(dtype, device, record), quiet)
    pictures = outputs.save_all(result, out, keep_settings=not no_metadata)
    sheet = outputs.save_sheet(result, out)
    report = {"pictures": pictures, "sheet": sheet, "settings": common(result.metadata), "seconds": time.perf_counter() - began}
    for line in [*outputs.dropped(result.metadata), *requests.differences(record, result.metadata[0])]:
        notice(f"note: {line}", quiet)
    if as_json:
        print_json(report)
    elif not quiet:
        tell(report)


def prepare(asked: dict, again: Path | None, quiet: bool) -> tuple[dict, dict]:
    """The library's arguments, and the record of the picture to make again (empty without one)."""
    prompts = asked.get("prompt", [])
    if again is None:
        if not prompts:
            raise ArgumentError('got no prompt: expected unnoise generate "a red apple", or --from with a picture')
        if len(prompts) > 1 and not any(" " in prompt for prompt in prompts):
            notice(f"note: {len(prompts)} prompts of one word; quote a prompt of several words", quiet)
        return {"model": "emoji", **asked}, {}
    record, exact = requests.recorded(again)
    if not exact:
        notice(f"note: {str(again)!r} is from another program: the same settings, not the same pixels", quiet)
    from unnoise.model import arguments

    merged, changes = requests.merge(arguments(record), asked, again)
    for change in changes:
        notice(f"note: {change}", quiet)
    return {"model": "emoji", **merged}, record if exact else {}


def place(dtype: str | None, device: str | None, record: dict) -> dict:
    """Precision and device: as asked, else as recorded (every machine has a CPU, not every one that GPU), else automatic."""
    recorded = "cpu" if record.get("device") == "cpu" else "auto"
    return {"dtype": dtype or record.get("dtype") or "auto", "device": device or recorded}


def run(arguments: dict, where: dict, quiet: bool) -> Any:
    """Load the model and sample, with a bar; returns the Result. Leaving by Ctrl-C leaves the loop, so at most one step is lost."""
    with progress(quiet) as show:
        show("loading", 0, None)
        import unnoise

        name, rest = arguments["model"], {key: value for key, value in arguments.items() if key != "model"}
        for state in unnoise.load(name, **where).stream(**rest):
            show("sampling", state.step, state.steps)
        return state.result()


def common(metadata: list[dict]) -> dict:
    """The effective settings that all pictures share."""
    return {key: value for key, value in metadata[0].items() if key not in ("prompt", "seed", "dropped_tokens")}


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
