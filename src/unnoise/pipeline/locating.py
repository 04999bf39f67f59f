"""Where a model is: a path, a name among those that come with the package, or a hub id."""

from __future__ import annotations

from pathlib import Path

from unnoise.errors import ArgumentError, FileError, UnknownName

BUILTIN = Path(__file__).parent.parent / "builtin"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def locate(model: str | Path, variant: str | None = None) -> Path:
    """Where a model is: a path as it is, a name among those that come with the package, or a hub id in its cache."""
    expected = "a name that unnoise.models() lists, a .safetensors file, a diffusers folder or a hub id"
    if not isinstance(model, str | Path) or not str(model):
        raise ArgumentError(f"got model {model!r}: expected {expected}")
    path, in_repository, builtin = Path(model), ":" in str(model), BUILTIN / f"{model}.safetensors"
    if path.name == str(model) and builtin.is_file():  # a folder of that name is ./name
        return builtin
    if path.is_dir() or (path.is_file() and path.suffix not in PICKLES) or (path.suffix == ".safetensors" and not in_repository):
        return path
    if path.suffix in PICKLES and not in_repository:
        there = f"{path} is a pickle by its name: run `unnoise convert {path} {path.with_suffix('.safetensors').name}`"
        raise FileError(there if path.exists() else f"no file {path}: expected {expected}")
    if path.is_absolute() or str(model).startswith((".", "~")) or (len(path.parts) > 1 and not isinstance(model, str)):
        raise FileError(f"no such file or folder: {path}; expected {expected}")
    if isinstance(model, str) and "/" in model:
        from unnoise.checkpoints.store import hub

        if hub.is_id(model):
            return hub.resolve(model, variant=variant)
        raise FileError(f"no such file or folder: {path}; expected {expected}")
    raise UnknownName("model", str(model), [p.stem for p in BUILTIN.glob("*.safetensors")], f"expected {expected}")
