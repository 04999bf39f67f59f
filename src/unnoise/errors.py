"""Every error that unnoise raises on purpose, and the did-you-mean that they share.

    UnnoiseError
    ├── ArgumentError (also ValueError)   a value that cannot be used: got, expected, what to do
    │   └── UnknownName                   a name that no registry has; says the nearest ones
    ├── DataError                         pictures or captions that are missing, changed or unreadable
    ├── FileError                         a checkpoint or picture file that cannot be read or written
    ├── MissingExtra (also ImportError)   an optional package is absent; prints the pip line
    └── NonFiniteError                    NaN or infinity: names the component and the step

A message is one line: what was got, what was expected, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnnoiseError(Exception):
    """The root: catch this to catch everything unnoise refuses."""


class ArgumentError(UnnoiseError, ValueError):
    """A value that cannot be used."""


class UnknownName(ArgumentError):
    """A name that the registry does not hold."""

    def __init__(self, kind: str, name: object, known: Iterable[str], expected: str = ""):
        known = sorted(known)
        near = nearest(str(name), known)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}" if known else ""
        hint = f"{hint} ({expected})" if hint and expected else hint or expected or "there are none"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class DataError(UnnoiseError):
    """Pictures or captions that are missing, changed or unreadable."""


class FileError(UnnoiseError):
    """A file that cannot be read or written."""


class MissingExtra(UnnoiseError, ImportError):
    """An optional package is absent."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"this needs {package}, which is not installed: pip install 'unnoise[{extra}]'")


class NonFiniteError(UnnoiseError):
    """A tensor holds NaN or infinity."""


def nearest(name: str, known: Iterable[str], n: int = 2) -> list[str]:
    """The known names that look most like `name`, best first; then those that contain it, as `num_inference_steps` does `steps`."""
    known = list(known)
    alike = difflib.get_close_matches(name, known, n=n, cutoff=0.55)
    return [*alike, *(other for other in known if len(name) > 2 and name in other and other not in alike)][:n]
