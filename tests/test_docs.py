"""README and docs: every Python block runs and prints what stands below it; tables, commands, options and links are those of the code."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

import house
import pages
from unnoise.cli.app import VERBS
from unnoise.cli.app import verb as command_of
from unnoise.data.colours import COLOURS
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.predictions import PREDICTIONS
from unnoise.diffusion.schedules import BETAS
from unnoise.diffusion.solvers import SOLVERS
from unnoise.families.table import FAMILIES
from unnoise.images import metadata
from unnoise.images.hints import HINTS

DOCS = house.ROOT / "docs"
WEIGHTS = pages.weights()
PYTHON = [block for page in pages.PAGES for block in pages.blocks(page, "python")]
CONSOLE = [block for page in pages.PAGES for block in pages.blocks(page, "console")]
SHELL = [block for page in pages.PAGES for block in pages.blocks(page, "sh")]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, pages.Session]:
    return {page: pages.Session(page, tmp_path_factory.mktemp(page.stem)) for page in pages.PAGES}


@pytest.mark.parametrize("block", PYTHON, ids=[block.name for block in PYTHON])
def test_the_block_runs_and_prints_what_stands_below_it(block: pages.Block, sessions: dict[Path, pages.Session]):
    if block.lacks():
        pytest.skip(block.lacks())
    found = sessions[block.page].run(block)
    if block.output is not None:
        assert pages.differences(block.output, found) == [], "`python tests/pages.py --write` pastes what is printed"


def run(command: str) -> str:
    """What `unnoise ...` prints."""
    from unnoise.cli import main

    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as stop:
        main(shlex.split(command)[1:])
    assert not stop.value.code, command
    return stream.getvalue()


@pytest.mark.parametrize("block", CONSOLE, ids=[block.name for block in CONSOLE])
def test_the_command_prints_what_stands_below_it(block: pages.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if block.lacks():
        pytest.skip(block.lacks())
    monkeypatch.chdir(tmp_path)
    for command, output in pages.commands(block):
        found = run(command)
        if "--help" in command:  # its words are ours, its layout is typer's and changes with typer's versions
            assert set(re.findall(r"(?<!\w)--?[a-z][-a-z]*", output)) == set(re.findall(r"(?<!\w)--?[a-z][-a-z]*", found)), command
        else:
            assert pages.differences(output, found) == [], command


@pytest.mark.parametrize("block", SHELL, ids=[block.name for block in SHELL])
def test_the_options_exist(block: pages.Block):
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["unnoise"]:
            verb = words[1:3] if hasattr(command_of(words[1]), "commands") else words[1:2]  # of a group the verb is the second word
            known = run(shlex.join(["unnoise", *verb, "--help"]))
            assert words[1] in VERBS and all(re.search(rf"(?<!\S){word}(?![-\w])", known) for word in words if word.startswith("-")), line


# Tables are those of the registries


def test_samplers():
    rows = [
        [s.name, str(s.order), str(s.evaluations), "yes" if s.stochastic else "no", ", ".join(s.options) or "none"]
        for s in SOLVERS.values()
    ]
    assert [row[:5] for row in pages.table(DOCS / "diffusion.md", "## Samplers")] == rows


def test_spacings():
    assert [row[0] for row in pages.table(DOCS / "diffusion.md", "## Spacings")] == list(GRIDS)


def test_predictions():
    assert [row[0] for row in pages.table(DOCS / "diffusion.md", "## Predictions")] == list(PREDICTIONS)


def test_betas():
    assert [row[0] for row in pages.table(DOCS / "diffusion.md", "## Tables of betas")] == list(BETAS)


def test_colours():
    rows = [[name, ", ".join(colour.words["en"]), ", ".join(colour.words["ko"])] for name, colour in COLOURS.items()]
    assert pages.table(DOCS / "data.md", "## Colours") == rows


def test_families():
    rows = [
        [row.name, row.summary, str(row.size), row.prediction, f"{row.defaults.sampler}, {row.defaults.num_inference_steps}"]
        for row in FAMILIES.values()
    ]
    found = pages.table(DOCS / "checkpoints.md", "### Families")
    assert [[*row[:3], *row[4:]] for row in found] == rows
    assert [row[3] == "nothing" for row in found] == [row.conditioning == "none" for row in FAMILIES.values()]


def test_hints():
    rows = [[name, row.text, "yes" if row.model else "no"] for name, row in HINTS.items()]
    assert pages.table(DOCS / "checkpoints.md", "### Hints") == rows


def test_schedulers_of_diffusers():
    import diffusers

    rows = pages.table(DOCS / "from-diffusers.md", "## Schedulers")
    theirs = [re.findall(r"\w+Scheduler", row[0]) for row in rows]
    assert all(names and all(hasattr(diffusers, name) for name in names) for names in theirs)
    assert [row[1] for row in rows if row[1] not in SOLVERS] == []


def test_names_of_other_programs():
    rows = pages.table(DOCS / "from-comfyui.md", "## Samplers")
    assert {ours: web for web, _, ours in rows if web != "none"} | {"ddpm": "DDPM"} == metadata.SAMPLERS  # the web UI has no DDPM
    assert [ours for _, _, ours in rows if ours not in SOLVERS] == []


def test_the_drawing_of_the_layers():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert f"```text\n{house.drawing()}```\n" in page, "`python tests/house.py --write` renews the drawing"
    rows = [name for row in pages.table(DOCS / "architecture.md", "## What each holds") for name in row[0].split(", ")]
    names = {name.split(".")[1] for name in house.tree(house.ROOT / "src") if "." in name} - {"__main__"}
    assert sorted(rows) == sorted(names)


def test_every_command_has_its_section():
    assert re.findall(r"^## unnoise (\w+)$", (DOCS / "cli.md").read_text(encoding="utf-8"), re.MULTILINE) == list(VERBS)


# Links


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        name, _, anchor = "".join(target).partition("#")
        if "://" in name:
            continue
        found = page if not name else (page.parent / name)
        if "/images/" in f"/{name}" and not WEIGHTS:
            continue  # the picture that the built-in model makes comes with its weights
        assert found.exists(), f"{page.name} links to {name}"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {name}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []


# The comparison itself


def test_a_wrong_output_is_seen():
    assert pages.differences("a 1.50 b\n", "a 1.51 b\n") == [] == pages.differences("1,234 2e-03", "1,234   2e-03\n")
    for page, printed in [("a 1.50", "a 1.52"), ("7", "8"), ("a", "b"), ("a", "a\nb"), ("1.0e-03", "1.3e-03")]:
        assert pages.differences(page, printed), (page, printed)
