"""The rules of the house (CONTRIBUTING.md lists them) as functions over source text; test_house.py applies them and plants violations.

A tree is {"unnoise.diffusion.solvers": source, ...}; every rule returns its complaints, one line each, and an empty list when all is well.
`python tests/house.py --write` records the public names anew in tests/public_names.txt.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "unnoise"
RECORD = ROOT / "tests" / "public_names.txt"

# From the ground up. What stands on one line may not import its neighbours on that line.
FLOORS = (
    ("errors", "version"),
    ("conditioning",),
    ("diffusion", "networks"),
    ("families",),
    ("runtime",),
    ("checkpoints",),
    ("images", "prompts"),
    ("request",),
    ("adapting", "classifiers", "encoding", "inputs"),
    ("trajectory",),
    ("model",),
    ("loading",),
    ("controls",),
    ("data",),
    ("training",),
    ("evaluation",),
    ("serving",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, line in enumerate(FLOORS) for name in line}

MODULE_LINES = 400
FUNCTION_LINES = 80  # without the docstring
TYPICAL_LINES, TYPICAL_SHARE = 40, 0.9
PARAMETERS = 8  # without self and cls
VERBS = {"generate", "stream", "sample"}  # these take what diffusers' callers know; so does a command, whose parameters are its options

PEERS = {"diffusers", "transformers", "peft", "k_diffusion", "torch_fidelity"}  # tests compare with them; the package stands alone
IMPORT_NAMES = {"pillow": "PIL", "opencv-python-headless": "cv2"}  # where a distribution's import is not its name with underscores
SILENT_EXTRAS = {"test"}  # the package imports nothing of these

KERNELS = ("scaled_dot_product_attention", "flex_attention", "flash_attn", "xformers")
KERNEL_HOME = "unnoise.networks.attention"

Tree = Mapping[str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(source: Path) -> dict[str, str]:
    """Every module below `source` (the folder that holds the package), by its dotted name."""
    found = {}
    for path in sorted(source.glob(f"{PACKAGE}/**/*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


# Imports


def imported(name: str, sources: Tree) -> set[str]:
    """The full names that module `name` imports anywhere in its text, also inside functions and through importlib."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(sources[name])):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, node, sources)
            names |= {full if (full := f"{base}.{alias.name}") in sources else base for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names |= {first.value for first in node.args[:1] if isinstance(first, ast.Constant) and isinstance(first.value, str)}
    return names


def _absolute(name: str, node: ast.ImportFrom, sources: Tree) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{name}.") for other in sources)
    parts = name.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _floor(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def upward(sources: Tree) -> list[str]:
    """Imports that climb, that cross between neighbours, or that enter through the front door from below the model."""
    homeless = [name for name in sources if _floor(name) not in {*HEIGHT, ""}]
    faults = [f"{name}: no floor {_floor(name)!r}: give it one in tests/house.py FLOORS" for name in homeless]
    for name in sorted(sources):
        for other in sorted(imported(name, sources)):
            if other.split(".")[0] == PACKAGE and name != PACKAGE and not _may(_floor(name), _floor(other)):
                faults.append(f"{name} imports {other}: imports go down the floors only")
    return faults


def _may(floor: str, other: str) -> bool:
    if floor == other:
        return True
    return HEIGHT.get(floor, -1) > HEIGHT.get(other or "model", len(FLOORS))  # the package itself offers what the model does


def cycles(sources: Tree) -> list[str]:
    """Modules that import each other, directly or round about; an import inside a function counts."""
    graph = {name: sorted(imported(name, sources) & set(sources)) for name in sources if name != PACKAGE}
    done: set[str] = set()
    found: list[str] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append("a cycle of imports: " + " -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in graph.get(name, []):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def undeclared(sources: Tree, project: Mapping[str, Any]) -> list[str]:
    """Third-party imports that pyproject does not state, extras imported at the top of a module, what nothing uses, peers."""
    base = {_import_name(line) for line in project["dependencies"]}
    extras = {key: {_import_name(line) for line in lines} - {PACKAGE} for key, lines in project["optional-dependencies"].items()}
    optional = set().union(*(names for key, names in extras.items() if key not in SILENT_EXTRAS))
    faults = []
    for name in sorted(sources):
        at_top, every = _top_level(sources[name]), {full.split(".")[0] for full in imported(name, sources)}
        for other in sorted(every - sys.stdlib_module_names - {PACKAGE}):
            if other in PEERS:
                faults.append(f"{name} imports {other}: a peer is for tests")
            elif other not in base | optional:
                faults.append(f"{name} imports {other}: state it in pyproject.toml")
            elif other not in base and other in at_top:
                faults.append(f"{name} imports {other} at its top: an extra is imported in the function that needs it")
    used = {full.split(".")[0] for name in sources for full in imported(name, sources)}
    faults += [f"the dependencies list {name}, which nothing imports" for name in sorted(base - used)]
    text = "\n".join(sources.values())
    faults += [f"the extra lists {name}, which nothing uses" for name in sorted(optional) if not re.search(rf"\b{name}\b", text)]
    return faults


def _import_name(requirement: str) -> str:
    name = re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower()
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def _top_level(source: str) -> set[str]:
    statements = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in [*names, *(node.module or "" for node in statements if isinstance(node, ast.ImportFrom))]}


# Sizes


def functions(source: str) -> Iterator[tuple[Function, int]]:
    """Each function and its lines without the docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            doc = node.body[0] if ast.get_docstring(node) else None
            yield node, (node.end_lineno or 0) - node.lineno + 1 - (((doc.end_lineno or 0) - doc.lineno + 1) if doc else 0)


def sizes(sources: Tree) -> list[str]:
    """Modules and functions that have grown too long, functions that ask for too much."""
    faults, lengths = [], []
    for name, source in sorted(sources.items()):
        if (lines := len(source.splitlines())) > MODULE_LINES:
            faults.append(f"{name} has {lines} lines: at most {MODULE_LINES}")
        for node, length in functions(source):
            lengths.append(length)
            if length > FUNCTION_LINES:
                faults.append(f"{name}.{node.name} has {length} lines: at most {FUNCTION_LINES}")
            if (count := _parameters(node)) > PARAMETERS and node.name not in VERBS and _floor(name) != "cli":
                faults.append(f"{name}.{node.name} has {count} parameters: at most {PARAMETERS}; group the rest in a dataclass")
    typical = sum(length <= TYPICAL_LINES for length in lengths)
    if typical < TYPICAL_SHARE * len(lengths):
        faults.append(f"{typical} of {len(lengths)} functions have {TYPICAL_LINES} lines or fewer: expected {TYPICAL_SHARE:.0%}")
    return faults


def _parameters(node: Function) -> int:
    a = node.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))]
    return len(names) - (names[:1] in (["self"], ["cls"]))


# Text


def kernels(sources: Tree) -> list[str]:
    """Attention kernels named outside the one file that chooses between them."""
    elsewhere = [(name, word) for name in sorted(sources) if name != KERNEL_HOME for word in KERNELS if word in sources[name]]
    return [f"{name} names {word}: only {KERNEL_HOME} does" for name, word in elsewhere]


def machine_paths(text: str) -> list[str]:
    """Absolute paths and registry hosts: they hold on one machine only. The classes of one letter keep this file from matching itself."""
    path = r"(?<![\w.:<>~/*$})-])/(?:[w]ork|[r]oot|[h]ome|[U]sers|[t]mp|[o]pt|[m]nt|[s]rv)/[\w.]+"
    host = r"\b(?:files\.[p]ythonhosted\.org|[p]ypi\.org/simple|download\.[p]ytorch\.org|registry\.[n]pmjs\.org|/whl/[c]pu)"
    return re.findall(f"{path}|{host}", text)


def kept(root: Path) -> list[Path]:
    """The files that git keeps, or would; relative to `root`."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True)
    names = sorted(map(Path, filter(None, listed.stdout.split("\0"))))
    return [name for name in names if (root / name).is_file()]  # not those deleted and not yet committed


def texts(root: Path) -> Iterator[tuple[Path, str]]:
    """The text files among them."""
    for name in kept(root):
        try:
            yield name, (root / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights


# Public names


def surface(module: ModuleType, holders: Iterable[str] = ()) -> list[str]:
    """One line with its signature for each public name of `module` and each public method; `holders` hold the classes that it returns."""
    lines: list[str] = []
    for name in sorted(module.__all__):
        lines += _lines(f"{module.__name__}.{name}", getattr(module, name))
    for holder in map(importlib.import_module, holders):
        classes = {key: value for key, value in _own(holder).items() if inspect.isclass(value)}
        for key, value in sorted(classes.items()):
            lines += _lines(f"{holder.__name__}.{key}", value)
    return lines


def _own(module: ModuleType) -> dict[str, Any]:
    """The public names that the module defines itself."""
    return {key: value for key, value in vars(module).items() if key[0] != "_" and getattr(value, "__module__", "") == module.__name__}


def _lines(name: str, value: Any) -> list[str]:
    if inspect.ismodule(value):
        return [line for key, item in sorted(_own(value).items()) for line in _lines(f"{name}.{key}", item)]
    if inspect.isclass(value):
        public = {key: getattr(value, key) for key, item in vars(value).items() if key[0] != "_" and _is_method(item)}
        made = (inspect.isfunction(value.__init__) and not getattr(value, "_is_protocol", False)) or issubclass(value, tuple)
        head = f"class {name}" + (_signature(value) if made else "")  # fields of a dataclass are in its signature
        return [head, *(f"{name}.{key}" + (_signature(item) if callable(item) else "") for key, item in sorted(public.items()))]
    return [name + (_signature(value) if callable(value) else "")]


def _is_method(item: Any) -> bool:
    return inspect.isfunction(item) or isinstance(item, property | classmethod | staticmethod | functools.cached_property)


def _signature(value: Any) -> str:
    """Names, kinds and defaults; not the annotations, which Python versions print differently."""
    signature = inspect.signature(value)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values() if p.name not in ("self", "cls")]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def drift(recorded: Iterable[str], found: Iterable[str]) -> list[str]:
    """What the record lacks, and what it still has."""
    old, new = set(recorded), set(found)
    return [f"+ {line}" for line in sorted(new - old)] + [f"- {line}" for line in sorted(old - new)]


def public() -> list[str]:
    """The surface of unnoise as it is."""
    import unnoise

    lines = surface(unnoise, ["unnoise.model"])
    return [*lines, "samplers: " + " ".join(info.name for info in unnoise.samplers())]


def recorded() -> list[str]:
    return RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    for line in drift(recorded(), public()):
        print(line)
    RECORD.write_text("\n".join(public()) + "\n", encoding="utf-8")
