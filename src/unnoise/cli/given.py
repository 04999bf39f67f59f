"""What `unnoise generate` is given by name: the model, its parts and adapters, pictures, ControlNets, a second model.

Files stay as they were typed in the arguments and in a picture's record ("given"), so that --from opens them again; `opened` makes of
them what the library takes.

    --control NET=PICTURE,scale=0.8,start=0,end=0.5,guess,hint=canny,low_threshold=50
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from unnoise.errors import ArgumentError, FileError, UnknownName

LOADED = ("variant", "prediction", "parts")  # arguments of `load`
FILES = (*LOADED, "lora", "embedding", "image", "mask_image", "control", "refiner", "classifier")
SETTINGS = {"scale": 1.0, "start": 0.0, "end": 1.0}  # of a control


def opened(arguments: dict, where: dict) -> tuple[Any, dict]:
    """The model with its adapters on, and what its `stream` is given. Raises FileError or ArgumentError."""
    import unnoise

    rest = {name: value for name, value in arguments.items() if name not in ("model", "lora", "embedding", *LOADED)}
    loaded = {name: arguments[name] for name in LOADED if name in arguments}
    if "parts" in loaded:
        loaded["parts"] = parts(loaded["parts"])
    model = unnoise.load(arguments["model"], **loaded, **where)
    for text in arguments.get("embedding", ()):
        model = model.with_embedding(*named_file(text))
    if "lora" in arguments:
        model = model.with_lora([scaled(text) for text in arguments["lora"]])
    if "refiner" in rest:
        rest["refiner"] = unnoise.load(rest["refiner"], **where)
    if "classifier" in rest:
        rest["classifier"] = unnoise.load_classifier(rest["classifier"], **where)
    if "control" in rest:
        rest["control"] = [control(text, model) for text in rest["control"]]
    return model, rest


def named(arguments: dict) -> dict:
    """The part of a picture's record that says which files there were, as they were typed."""
    files = {name: arguments[name] for name in FILES if name in arguments}
    return {"given": files} if files else {}


def evidence(model: Any) -> list[str]:
    """How the model's family is known, and which adapters are on: one line, none for a model of the package."""
    lines = getattr(model, "evidence", ())
    return [f"{model.spec.name}: {'; '.join(lines)}"] if lines else []


def parts(texts: list[str]) -> dict[str, str | None]:
    """["autoencoder=vae.safetensors", "text_encoder_3=none"]"""
    found = {}
    for text in texts:
        place, equals, file = text.partition("=")
        if not (place and equals and file):
            raise ArgumentError(f"--part: got {text!r}, expected PLACE=FILE such as autoencoder=vae.safetensors, or PLACE=none")
        found[place] = None if file == "none" else file
    return found


def named_file(text: str) -> tuple[str, str | None]:
    """A file, or FILE=WORD."""
    file, _, word = text.partition("=")
    return (text, None) if Path(text).exists() or not word else (file, word)


def scaled(text: str) -> tuple[str, float]:
    """A file, or FILE=SCALE."""
    found = re.fullmatch(r"(.+)=([^=]*)", text)
    if Path(text).exists() or not found:
        return text, 1.0
    return found[1], number("--lora", text, found[2])


def number(option: str, text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ArgumentError(f"{option}: got {value!r} in {text!r}, expected a number") from None


def control(text: str, model: Any) -> Any:
    """NET=PICTURE and its settings as the library's Control."""
    import unnoise
    from unnoise.pipeline import inputs

    net, picture, settings = split(text)
    guess = settings.pop("guess", "") == "guess"
    values = {name: number("--control", text, settings.pop(name, str(default))) for name, default in SETTINGS.items()}
    shown: Any = picture
    if kind := settings.pop("hint", None):
        from unnoise.images import hints

        file = settings.pop("model", None)
        shown = hints.hint(
            kind, inputs.pil(picture, "control image"), file, **{name: number("--control", text, v) for name, v in settings.items()}
        )
    elif settings:
        raise UnknownName("setting of --control", next(iter(settings)), [*SETTINGS, "guess", "hint"])
    return unnoise.Control(unnoise.load_control(net, model=model), shown, **values, guess=guess)


def split(text: str) -> tuple[str, str, dict[str, str]]:
    """NET, PICTURE and the settings behind it, from the right: a picture's own name may have commas."""
    net, _, rest = text.partition("=")
    settings: dict[str, str] = {}
    while found := re.fullmatch(r"(.*),(?:(guess)|(\w+)=([^,]*))", rest):
        rest = found[1]
        settings = {found[2] or found[3]: found[2] or found[4], **settings}
    if not (net and rest):
        raise ArgumentError(f"--control: got {text!r}, expected NET=PICTURE such as canny.safetensors=edges.png,scale=0.8")
    return net, rest, settings


def tagged(arguments: dict, folder: Path | None) -> dict:
    """The arguments with the <lora:name:0.8> of the prompts as files of the folder. Raises ArgumentError, UnknownName or FileError."""
    prompts = arguments.get("prompt") or []
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not any("<l" in prompt for prompt in prompts) or not arguments.get("prompt_weights", True):
        return arguments
    from unnoise.pipeline.prompts import loras

    texts, tags = zip(*(loras(prompt) for prompt in prompts), strict=True)
    if any(other != tags[0] for other in tags):
        raise ArgumentError("the prompts have different <lora:...> tags: expected the same in each, or one call for each prompt")
    if not tags[0]:
        return arguments
    files = [f"{tag_file(tag.name, folder)}={tag.weight:g}" for tag in tags[0]]
    return {**arguments, "prompt": list(texts), "lora": [*arguments.get("lora", []), *files]}


def tag_file(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise ArgumentError(f"got <lora:{name}> in the prompt: expected --lora-dir with the folder of its file, or --lora FILE=SCALE")
    if not folder.is_dir():
        raise FileError(f"--lora-dir {str(folder)!r} is no folder: expected one with {name}.safetensors")
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise UnknownName("LoRA", name, [file.stem for file in folder.glob("*.safetensors")], f"expected a file in {str(folder)!r}")
    return path
