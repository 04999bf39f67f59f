"""Build the site into site/: every page of docs/, and a page for each module from its docstrings. A warning is an error.

    python website/build.py          `make docs` runs this

The pages are put together in build/website, as plain files, and then mkdocs builds them; so any builder that reads mkdocs.yml can take
its place. Links in docs/ are relative, as GitHub reads them. A file above docs/ that a page links to, such as ../CONTRIBUTING.md, becomes
a page of the site: Markdown as it is, anything else as a block of code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "website"
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")  # a link from docs/ to a file above it
LINK = re.compile(r"!?\[([^\]]*)\]\((?![a-z]+:|#)[^)\s]+\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json"}


def modules(source: Path) -> list[str]:
    """Every public module below `source`, by its dotted name."""
    paths = [path.relative_to(source).with_suffix("") for path in sorted(source.glob("unnoise/**/*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if name != "unnoise" and "._" not in name]


def page(module: str) -> str:
    """Where the page of a module is: "unnoise.diffusion.grids" -> "api/diffusion.grids.md"."""
    return f"api/{module.removeprefix('unnoise.')}.md"


def place(name: str) -> str:
    """Where the site keeps a file of the repository that is outside docs/."""
    return f"files/{name}" if name.endswith(".md") else f"files/{name}.md"


def text(path: Path) -> str:
    """A file of the repository as a page. Its own links are reduced to their words, because what they lead to may have no page."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return LINK.sub(r"\1", content)
    return f"# {path.name}\n\n```{LANGUAGES.get(path.suffix, 'text')}\n{content}```\n"


def pages(docs: Path, names: Iterable[str]) -> dict[str, str]:
    """The text of every page by its place in the site; `names`: the modules."""
    written = {path.name: path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md"))}
    outside = sorted({name for content in written.values() for name in OUTSIDE.findall(content)})
    made = {name: OUTSIDE.sub(lambda found: f"]({place(found[1])}", content) for name, content in written.items()}
    made |= {place(name): text(ROOT / name) for name in outside}
    return made | {page(name): f"# {name}\n\n::: {name}\n" for name in names}


def navigation(names: Iterable[str]) -> list[Any]:
    """The section of the interface: one section for each package, then the single modules."""
    sections: dict[str, list[Any]] = {"": []}
    for name in names:
        package, dot, rest = name.removeprefix("unnoise.").partition(".")
        sections.setdefault(package if dot else "", []).append({rest or package: page(name)})
    alone = sections.pop("")
    return ["api/README.md", *({name: found} for name, found in sorted(sections.items())), *alone]


def assemble() -> Path:
    """Write build/website: the pages, the source with an __init__.py in every folder (griffe passes over a folder without), mkdocs.yml."""
    shutil.rmtree(BUILD, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.gz")
    shutil.copytree(ROOT / "src" / "unnoise", BUILD / "src" / "unnoise", ignore=ignored)
    names = modules(BUILD / "src")
    for folder in {path.parent for path in BUILD.glob("src/**/*.py")}:
        (folder / "__init__.py").touch()
    shutil.copytree(ROOT / "docs", BUILD / "docs")
    made = pages(ROOT / "docs", names)
    for name, content in made.items():
        target = BUILD / "docs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    shutil.copy(ROOT / "website" / "interface.md", BUILD / "docs" / "api" / "README.md")
    shutil.copy(ROOT / "website" / "site.css", BUILD / "docs" / "site.css")
    shutil.copy(ROOT / "website" / "comments.py", BUILD / "comments.py")
    settings = (ROOT / "website" / "mkdocs.yml").read_text(encoding="utf-8")
    sections = [{"Interface": navigation(names)}, {"Files": [name for name in made if name.startswith("files/")]}]
    (BUILD / "mkdocs.yml").write_text(settings + "".join(f"  - {json.dumps(section)}\n" for section in sections), encoding="utf-8")
    return BUILD / "mkdocs.yml"


def main() -> int:
    settings, site = assemble(), ROOT / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(settings), "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's note on its own future, which is no fault of a page
    return subprocess.run(command, cwd=BUILD, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
