"""`unnoise generate`: pictures from text, a label or a picture; again from what a picture carries; or from each line of a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unnoise.cli import again, batch, drawing, outputs, requests, tags
from unnoise.cli.console import notice, print_json, progress
from unnoise.cli.options import Options, verb
from unnoise.cli.requests import Record
from unnoise.cli.sources import Source, source
from unnoise.errors import ArgumentError
from unnoise.pipeline.request import Request

if TYPE_CHECKING:
    from unnoise.pipeline.stages import Result


@verb
def generate(options: Options) -> None:
    """Make pictures from text, a class or another picture.

    Every picture is a new file that carries its prompt, seed and settings; --from makes the same pixels again. A line of --batch is such a
    record, or as much of it as differs from the options.
    """
    if options.batch is not None:
        return batch.run(options, options.batch)
    began = time.perf_counter()
    typed, recorded = requests.parse(options), {}
    if options.again is None:
        check_prompts(typed, options.quiet)
    else:
        recorded = from_picture(options.again, typed, options.quiet)
    record = tags.tagged(requests.over(recorded, typed), options.lora_dir)
    model, request = source(record, options.dtype, options.device), requests.request(record)
    outputs.check(options.out, outputs.pictures(request))
    result = run(model, request, options.quiet)
    report = save(result, options.out, not options.no_metadata)
    report["seconds"] = time.perf_counter() - began
    for line in [*outputs.notes(result.metadata), *again.differences(recorded, result.metadata[0])]:
        notice(f"note: {line}", options.quiet)
    if options.as_json:
        print_json(report)
    elif not options.quiet:
        tell(report)


def check_prompts(typed: Record, quiet: bool) -> None:
    """The built-in model draws from text; of any other the library says what it wants, once it is loaded."""
    prompts = requests.texts(typed.get("prompt"))
    if not prompts and typed.get("model", "emoji") == "emoji":
        raise ArgumentError('got no prompt: expected unnoise generate "a red apple", or --from with a picture')
    if len(prompts) > 1 and not any(" " in prompt for prompt in prompts):
        notice(f"note: {len(prompts)} prompts of one word; quote a prompt of several words", quiet)


def from_picture(path: Path, typed: Record, quiet: bool) -> Record:
    """Return the record of the picture to make again, and say what the options change in it."""
    record, exact = again.recorded(path)
    if not exact:
        notice(f"note: {str(path)!r} is from another program: the same settings, not the same pixels", quiet)
    for line in again.notices(record, typed, path):
        notice(f"note: {line}", quiet)
    again.check_named(requests.over(record, typed), repr(str(path)))
    return record if exact else {name: value for name, value in record.items() if name != "model_hash"}


def run(model: Source, request: Request, quiet: bool) -> Result:
    """Load the model and draw, with a bar."""
    with progress(quiet) as show:
        loaded = drawing.load(model, show)
        for line in drawing.evidence(loaded):
            notice(line, quiet)
        return drawing.draw(loaded, model, request, show)


def save(result: Result, out: Path, keep_settings: bool) -> dict[str, Any]:
    """Write pictures and sheet; return what --json prints of them."""
    pictures = outputs.save_all(result, out, keep_settings)
    return {"pictures": pictures, "sheet": outputs.save_sheet(result, out), "settings": common(result.metadata)}


def common(metadata: list[Record]) -> Record:
    """The effective settings that all pictures share."""
    return {key: value for key, value in metadata[0].items() if key not in ("prompt", "seed", "class_labels", "dropped_tokens")}


def tell(report: dict[str, Any]) -> None:
    """Paths and seeds on stdout, the settings on stderr."""
    outputs.tell(report["pictures"], report["sheet"])
    used = report["settings"]
    notice(
        f"{used['model']}, {used['num_inference_steps']} steps of {used['sampler']}, guidance {used['guidance_scale']:g}, "
        f"{used['width']}x{used['height']}, {used['device']} {used['dtype']}, {report['seconds']:.1f} s"
    )
