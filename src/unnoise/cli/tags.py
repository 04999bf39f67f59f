"""The <lora:name:0.8> of prompts as files of --lora-dir."""

from __future__ import annotations

from pathlib import Path

from unnoise.cli.requests import Record, one_or_several, texts
from unnoise.errors import ArgumentError, FileError, UnknownName


def tagged(record: Record, folder: Path | None) -> Record:
    """Return a record with the tags of its prompts as files in its `lora`. Raises ArgumentError, UnknownName or FileError."""
    prompts = record.get("prompt")
    if not isinstance(prompts, str | list) or not all(isinstance(prompt, str) for prompt in prompts):
        return record  # the request refuses it
    if not record.get("prompt_weights", True) or not any("<l" in prompt for prompt in texts(prompts)):
        return record
    from unnoise.pipeline.prompts import loras

    kept, tags = zip(*(loras(prompt) for prompt in texts(prompts)), strict=True)
    if any(other != tags[0] for other in tags):
        raise ArgumentError("the prompts have different <lora:...> tags: expected the same in each, or one call for each prompt")
    if not tags[0]:
        return record
    files = [[str(tag_file(tag.name, folder)), float(tag.weight)] for tag in tags[0]]
    before = record.get("lora") or []
    return {**record, "prompt": one_or_several(list(kept)), "lora": [*(before if isinstance(before, list) else [before]), *files]}


def tag_file(name: str, folder: Path | None) -> Path:
    """Return the file that a tag names."""
    if folder is None:
        raise ArgumentError(f"got <lora:{name}> in the prompt: expected --lora-dir with the folder of its file, or --lora FILE=SCALE")
    if not folder.is_dir():
        raise FileError(f"--lora-dir {str(folder)!r} is no folder: expected one with {name}.safetensors")
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise UnknownName("LoRA", name, [file.stem for file in folder.glob("*.safetensors")], f"expected a file in {str(folder)!r}")
    return path
