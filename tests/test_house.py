"""The rules of the house hold, and each of them notices a violation."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest

import house

SOURCES = house.tree(house.ROOT / "src")
PROJECT = tomllib.loads((house.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded once it ran this code."""
    tail = "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.splitlines())


# The house as it stands


def test_the_tree_is_read():
    assert {"unnoise", "unnoise.errors", "unnoise.cli"} <= set(SOURCES)


def test_imports_go_down_the_floors():
    assert house.upward(SOURCES) == []


def test_no_cycles():
    assert house.cycles(SOURCES) == []


def test_sizes():
    assert house.sizes(SOURCES) == []


def test_arguments_can_be_followed():
    assert house.packed(SOURCES, house.recorded(), house.PACKED) == []


def test_tests_mirror_the_source():
    assert house.mirror(SOURCES, house.tests_of(house.ROOT / "tests")) == []


def test_imports_are_declared():
    assert house.undeclared(SOURCES, PROJECT) == []


def test_one_file_names_attention_kernels():
    assert house.kernels(SOURCES) == []


def test_no_machine_paths():
    assert [f"{name}: {found}" for name, text in house.texts(house.ROOT) for found in house.machine_paths(text)] == []


def test_public_names():
    changes = house.drift(house.recorded(), house.public())
    advice = "if that is meant, run `python tests/house.py --write`, commit tests/public_names.txt and write it into CHANGELOG.md"
    assert not changes, "\n".join(["the public names changed:", *changes, advice])


def test_an_unknown_public_name_is_refused_with_the_nearest():
    import unnoise

    with pytest.raises(AttributeError, match="did you mean 'samplers'"):
        _ = unnoise.sampler
    assert set(unnoise.__all__) <= set(dir(unnoise))


HEAVY = {"torch", "numpy", "PIL", "tokenizers", "huggingface_hub"}  # not pydantic, which typer itself takes where it can


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_torch(arguments: list[str]):
    run = f"from unnoise.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code"
    assert modules_after(run) & HEAVY == set()


def test_import_loads_no_torch():
    loaded = modules_after("import unnoise; unnoise.__version__; dir(unnoise); unnoise.errors")
    assert loaded & (HEAVY | {"pydantic", "typer", "rich"}) == set()
    assert "unnoise.errors" in loaded


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "unnoise", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "generate" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_wheel_carries_the_model_and_no_tests(tmp_path: Path):
    copy = tmp_path / "copy"  # so that no build folder is left in the checkout
    for name in house.kept(house.ROOT):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((house.ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), "--no-build-isolation", "./copy"]
    subprocess.run(pip, cwd=tmp_path, check=True, timeout=300)  # without isolation, so that nothing is downloaded
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(copy / "src").as_posix() for path in (copy / "src" / "unnoise").rglob("*") if path.is_file()}
    assert package <= held, sorted(package - held)
    assert {name.split("/")[0] for name in held} == {"unnoise", wheel.name.rsplit("-", 3)[0] + ".dist-info"}


# Planted violations

BY_NAME = "import importlib\nimportlib.import_module('unnoise.training')"
RING = {
    "unnoise.data.a": "from unnoise.data import b",
    "unnoise.data.b": "from .c import x",
    "unnoise.data.c": "def f():\n    import unnoise.data.a",
}
LONG = "def f():\n" + "    x = 1\n" * 80
NEWLINE = "\n"


def packed(sources: house.Tree) -> list[str]:
    return house.packed(sources, ["unnoise.sample(x, **options)"])


PLANTS = {
    "an upward import": (house.upward, {"unnoise.diffusion.grids": "from unnoise.model import load"}, "grids imports unnoise.model"),
    "an upward import in a function": (
        house.upward,
        {"unnoise.images.x": "def f():\n    import unnoise.data.y"},
        "x imports unnoise.data.y",
    ),
    "an upward relative import": (house.upward, {"unnoise.runtime.placement": "from ..cli import app"}, "placement imports unnoise.cli"),
    "an upward import by name": (house.upward, {"unnoise.data.x": BY_NAME}, "x imports unnoise.training"),
    "the front door from below": (house.upward, {"unnoise.networks.dit": "import unnoise"}, "dit imports unnoise:"),
    "neighbours": (house.upward, {"unnoise.networks.dit": "from unnoise.diffusion import grids"}, "dit imports unnoise.diffusion"),
    "a room without a floor": (house.upward, {"unnoise.attic.x": ""}, "no floor 'attic'"),
    "code among the weights": (house.upward, {"unnoise.builtin.x": ""}, "no floor 'builtin'"),
    "a cycle": (house.cycles, RING, "unnoise.data.a -> unnoise.data.b -> unnoise.data.c -> unnoise.data.a"),
    "a long module": (house.sizes, {"unnoise.model": "x = 1\n" * 501}, "501 lines of code"),
    "a module of long texts": (house.sizes, {"unnoise.model": f"x = '''{'word' * 9}{NEWLINE * 500}'''"}, "501 lines of code"),
    "a long function": (house.sizes, {"unnoise.model": LONG}, "81 lines"),
    "long functions everywhere": (house.sizes, {"unnoise.model": LONG * 2}, "0 of 2 functions"),
    "arguments of any name": (packed, {"unnoise.model": "def f(**x: Any): ..."}, "model: f takes **x: Any"),
    "arguments without a type": (packed, {"unnoise.model": "class A:\n    def f(self, **x): ..."}, "model: A.f takes **x: Any"),
    "a packed dict": (packed, {"unnoise.model": "def f(x: dict[str, Any] | None):\n    g(**x)"}, "model: f spreads its dict 'x'"),
    "a packed mapping": (packed, {"unnoise.model": "def f(*, x: Mapping[str, Any]):\n    g(**x)"}, "model: f spreads its dict 'x'"),
    "locals": (packed, {"unnoise.model": "def sample():\n    g(**locals())"}, "model: sample calls locals()"),
    "a kernel elsewhere": (house.kernels, {"unnoise.networks.dit": "F.scaled_dot_product_attention(q, k, v)"}, "dit names scaled_dot"),
}


@pytest.mark.parametrize("rule, planted, expected", PLANTS.values(), ids=PLANTS)
def test_a_planted_violation_is_seen(rule, planted: dict[str, str], expected: str, tmp_path: Path):
    for name, source in planted.items():  # through files, so that the reading of the tree is tested too
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    complaints = rule(house.tree(tmp_path))
    assert any(expected in line for line in complaints), complaints


def test_what_is_allowed_is_not_reported():
    fine = {
        "unnoise": "from unnoise.pipeline.model import load",
        "unnoise.pipeline.model": "from unnoise.version import __version__\nfrom ..diffusion import grids\ndef sample(**x: Any): f(**x)",
        "unnoise.diffusion.grids": "from unnoise.diffusion.noise import x\nfrom unnoise.errors import ArgumentError",
        "unnoise.diffusion.noise": 'def f(self, x: dict[str, int], **y: float):\n    """' + "doc\n" * 400 + '"""\n    g(**y)',
        "unnoise.diffusion.steps": "# why\n" * 400 + "\n" * 200 + "def f(**_: object): ...",
        "unnoise.cli.app": "import unnoise",
    }
    assert house.upward(fine) == house.cycles(fine) == house.sizes(fine) == packed(fine) == []


def test_the_list_of_packed_arguments_only_shrinks():
    assert house.packed({"unnoise.model": "def f(**x: Any): ..."}, [], ["model: f"]) == []
    (complaint,) = house.packed({"unnoise.model": "def f(x: int): ..."}, [], ["model: f"])
    assert "take it off PACKED" in complaint


@pytest.mark.parametrize(
    "test, expected",
    [
        ("attic/test_box", "tests/attic: no package unnoise.attic"),
        ("test_grids", "tests/test_grids.py: move it to tests/diffusion"),
        ("data/test_grids_of_time", "tests/data/test_grids_of_time.py: move it to tests/diffusion"),
        ("test_anything", "tests/test_anything.py: move it to the folder of a package"),
        (None, "unnoise.data: no folder tests/data"),
        (None, "unnoise.model: no file tests/test_model.py"),
    ],
)
def test_a_test_in_the_wrong_place_is_seen(test: str | None, expected: str):
    sources = {f"unnoise.{name}": "" for name in ("model", "version", "diffusion.grids", "data.pictures", "data.sets.emoji")}
    right = ["test_model", "test_house", "diffusion/test_grids", "diffusion/test_orders", "data/test_pictures", "data/sets/test_emoji"]
    fine = dict.fromkeys([*right, "peers/test_grids", "data/test_sets", "data/test_emoji"], "")
    assert house.mirror(sources, fine | {"data/test_grids": "from unnoise.data import pictures"}) == []
    wrong = [*right, test] if test else [name for name in right if name in ("test_house", "diffusion/test_grids")]
    faults = house.mirror(sources, dict.fromkeys(wrong, ""))
    assert any(expected in line for line in faults), faults


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import scipy", "scipy: state it in pyproject.toml"),
        ("def f():\n    from diffusers.models import unet", "diffusers: a peer is for tests"),
        ("import emoji", "emoji at its top"),
        ("import torch", "the extra lists emoji, which nothing uses"),
        ("import torch", "the dependencies list PIL, which nothing imports"),
    ],
)
def test_an_undeclared_import_is_seen(source: str, expected: str):
    project = {
        "dependencies": ["torch>=2,<3", "pillow"],
        "optional-dependencies": {"data": ["emoji>=2"], "test": ["pytest"]},
    }
    assert any(expected in line for line in house.undeclared({"unnoise.data.x": source}, project))
    assert house.undeclared({"unnoise.data.x": "import torch\nimport PIL.Image\ndef f():\n    import emoji"}, project) == []


def test_a_surprising_public_name_is_seen():
    module = types.ModuleType("planted")
    exec("def kept(a, *, b=1): ...\ndef surprise(x): ...\n__all__ = ['kept', 'surprise']", vars(module))
    assert house.drift(["planted.gone()", "planted.kept(a, *, b=2)"], house.surface(module)) == [
        "- planted.gone()",
        "- planted.kept(a, *, b=2)",
        "+ planted.kept(a, *, b=1)",
        "+ planted.surprise(x)",
    ]


def test_a_long_signature_stands_one_parameter_a_line(monkeypatch):
    module = types.ModuleType("planted")
    monkeypatch.setattr(house, "RECORD_WIDTH", 20)
    code = "def long(first, second=2, *, third=(1, 2), **rest): ...\ndef some(*names, last=1): ...\n__all__ = ['long', 'some']"
    exec(code, vars(module))
    lines = house.surface(module)
    assert lines == [
        *("planted.long(", "    first,", "    second=2,", "    *,", "    third=(1, 2),", "    **rest,", ")"),
        *("planted.some(", "    *names,", "    last=1,", ")"),
    ]
    changed = [line.replace("second=2", "second=3") for line in lines]
    assert house.drift(lines, changed) == ["- planted.long( second=2,", "+ planted.long( second=3,"]
    assert house.drift(lines, [*lines[:1], lines[2], lines[1], *lines[3:]]) != []  # the order of parameters counts


def test_what_the_documentation_imports_is_in_the_record():
    block = "from unnoise.diffusion import noise\nfrom unnoise.diffusion.steps import Past\nimport torch\nnoise.Streams([0])"
    names = [name for name, _ in house.documented([block])]
    assert names == ["unnoise.diffusion.noise.Streams", "unnoise.diffusion.steps.Past"]
    head = [line.removeprefix("class ").split("(")[0] for line in house.recorded()]
    assert [name for name, _ in house.documented(house.shown()) if name not in head] == []


def test_the_surface_shows_fields_methods_and_properties(monkeypatch):
    module = types.ModuleType("planted")
    monkeypatch.setitem(sys.modules, "planted", module)
    code = """
from dataclasses import dataclass
@dataclass
class Thing:
    size: int = 3
    def grow(self, by=1): ...
    @property
    def area(self): ...
    def _hidden(self): ...
class Wrong(ValueError): ...
__all__ = []
"""
    exec(code, vars(module))
    expected = ["class planted.Thing(size=3)", "planted.Thing.area", "planted.Thing.grow(by=1)", "class planted.Wrong"]
    assert house.surface(module, ["planted"]) == expected


def test_a_machine_path_is_seen():
    slash = "/"
    for path in ("home/me", "work/main", "Users/me", "tmp/venv"):
        assert house.machine_paths(f"read {slash}{path} first") == [f"{slash}{path}"]
    inside = "https:||example.org|home|me and src|work|x and ..|tmp|y and a|opt|b".replace("|", slash)
    assert house.machine_paths(inside) == []
    assert house.machine_paths("see download." + "pytorch.org") != []


def test_torch_would_be_noticed():
    assert "torch" in modules_after("import unnoise.diffusion.schedules")
