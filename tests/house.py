"""The rules of the house (CONTRIBUTING.md lists them) as functions over source text; test_house.py applies them and plants violations.

A tree is {"unnoise.diffusion.solvers": source, ...}; every rule returns its complaints, one line each, and an empty list when all is well.
`python tests/house.py --write` records the public names anew in tests/public_names.txt, and the layers in docs/architecture.md.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "unnoise"
RECORD = ROOT / "tests" / "public_names.txt"
HOLDERS = ("unnoise.pipeline.model", "unnoise.pipeline.request", "unnoise.pipeline.stages")  # modules of the classes that `load` leads to

# From the ground up. What stands on one line may not import its neighbours on that line.
FLOORS = (
    ("errors", "transfer", "version"),
    ("conditioning",),
    ("diffusion", "networks"),
    ("families",),
    ("runtime",),
    ("checkpoints",),
    ("images",),
    ("pipeline",),
    ("data",),
    ("training",),
    ("evaluation",),
    ("serving",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, line in enumerate(FLOORS) for name in line}

MODULE_LINES = 500  # of code: docstrings, comments and empty lines are not counted
FUNCTION_LINES = 80  # without the docstring
TYPICAL_LINES, TYPICAL_SHARE = 40, 0.9
RECORD_WIDTH = 100  # a longer signature stands in the record with one parameter a line

# Functions that still pack their arguments into dicts, as "file: qualified name". This list only shrinks.
PACKED = frozenset(
    {
        "papers: _adm",
        "papers: _classifier",
        "solvers: Solver.with_options",
        "table: _row",
    }
)

# Tests mirror the source; what follows is about no module of one folder.
CROSSING = {"peers", "pretend"}  # folders of tests that cross all of it
ABOUT_ALL = {"test_benchmarks", "test_builtin", "test_contributing", "test_docs", "test_examples", "test_house"}
UNTESTED_ALONE = {"__main__", "errors", "transfer", "version"}  # single modules without a file of tests: those of others cover them
THEMES = {"cli/test_process"}  # named after a theme that a module elsewhere bears too

PEERS = {"diffusers", "transformers", "peft", "k_diffusion", "torch_fidelity"}  # tests compare with them; the package stands alone
IMPORT_NAMES = {"pillow": "PIL", "opencv-python-headless": "cv2"}  # where a distribution's import is not its name with underscores
SILENT_EXTRAS = {"docs", "test"}  # the package imports nothing of these

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
    return HEIGHT.get(floor, -1) > HEIGHT.get(other or "pipeline", len(FLOORS))  # the package itself offers what the pipeline does


def drawing() -> str:
    """FLOORS as docs/architecture.md shows it, the highest layer first."""
    lines = [f"{height + 1:3d}  {' | '.join(line)}\n" for height, line in enumerate(FLOORS)]
    return "".join(reversed(lines))


def redraw() -> None:
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"(?<=```text\n).*?(?=```)", lambda _: drawing(), text, count=1, flags=re.DOTALL), encoding="utf-8")


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


def code_lines(source: str) -> int:
    """How many lines of `source` hold code: not those of docstrings, of comments alone, and empty ones."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    spoken: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            spoken.update(range(token.start[0], token.end[0] + 1))
    return len(spoken - _docstring_lines(source))


def _docstring_lines(source: str) -> set[int]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [node.body[0] for node in ast.walk(ast.parse(source)) if isinstance(node, documented) and ast.get_docstring(node) is not None]
    return {line for doc in docs for line in range(doc.lineno, (doc.end_lineno or doc.lineno) + 1)}


def sizes(sources: Tree) -> list[str]:
    """Modules and functions that have grown too long."""
    faults, lengths = [], []
    for name, source in sorted(sources.items()):
        if (lines := code_lines(source)) > MODULE_LINES:
            faults.append(f"{name} has {lines} lines of code: at most {MODULE_LINES}")
        for node, length in functions(source):
            lengths.append(length)
            if length > FUNCTION_LINES:
                faults.append(f"{name}.{node.name} has {length} lines: at most {FUNCTION_LINES}")
    typical = sum(length <= TYPICAL_LINES for length in lengths)
    if typical < TYPICAL_SHARE * len(lengths):
        faults.append(f"{typical} of {len(lengths)} functions have {TYPICAL_LINES} lines or fewer: expected {TYPICAL_SHARE:.0%}")
    return faults


# Arguments


def packed(sources: Tree, record: Iterable[str], allowed: Iterable[str] = ()) -> list[str]:
    """Functions whose arguments an editor cannot follow, and names in `allowed` that are none of them any more.

    Only a function in the record of public names may take `**x: Any`, or spread a parameter of type `dict[str, Any]` into a call.
    Nothing may call `locals()`.
    """
    public_names = {re.split(r"[( ]", line.removeprefix("class "))[0] for line in record}
    found: dict[str, list[str]] = {}
    for name, source in sorted(sources.items()):
        for qualified, node in qualified_functions(source):
            called = qualified.removesuffix(".__init__")  # a class stands in the record with the parameters of its `__init__`
            is_public = bool({f"{name}.{called}", f"{PACKAGE}.{called}"} & public_names)
            if reasons := [*_keyword_packs(node, is_public), *(["calls locals()"] if _calls_locals(node) else [])]:
                found[f"{name.rsplit('.', 1)[-1]}: {qualified}"] = reasons
    advice = "name the arguments, or group them in a dataclass"
    faults = [f"{key} {reason}: {advice}" for key in sorted(found.keys() - set(allowed)) for reason in found[key]]
    return faults + [f"{key!r} packs no arguments any more: take it off PACKED" for key in sorted(set(allowed) - found.keys())]


def qualified_functions(source: str) -> Iterator[tuple[str, Function]]:
    """Each function by its qualified name, "Class.method" or "outer.inner"."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, Function | ast.ClassDef)
            inside = f"{prefix}{child.name}." if named else prefix
            if isinstance(child, Function):
                yield inside[:-1], child
            yield from visit(child, inside)

    yield from visit(ast.parse(source), "")


def _keyword_packs(node: Function, is_public: bool) -> list[str]:
    if is_public:
        return []
    args = node.args
    dicts = {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs) if _is_dict_of_any(arg.annotation)}
    spread = {word.value.id for call in _own_calls(node) for word in call.keywords if word.arg is None and isinstance(word.value, ast.Name)}
    kept = args.kwarg if args.kwarg and args.kwarg.arg.strip("_") else None  # `**_` is not read
    taken = [f"takes **{kept.arg}: Any"] if kept and _is_any(kept.annotation) else []
    return taken + [f"spreads its dict {name!r} into a call" for name in sorted(spread & dicts)]


def _is_any(annotation: ast.expr | None) -> bool:
    return annotation is None or ast.unparse(annotation) in ("Any", "typing.Any", "object")


def _is_dict_of_any(annotation: ast.expr | None) -> bool:
    return annotation is not None and re.search(r"\b(?:dict|Dict|Mapping|MutableMapping)\[str, Any\]", ast.unparse(annotation)) is not None


def _own_calls(node: Function) -> Iterator[ast.Call]:
    return (child for child in ast.walk(node) if isinstance(child, ast.Call))


def _calls_locals(node: Function) -> bool:
    return any(isinstance(call.func, ast.Name) and call.func.id == "locals" for call in _own_calls(node))


# Tests


def mirror(sources: Tree, tests: Mapping[str, str]) -> list[str]:
    """Tests that do not stand where the name of what they test says; `tests`: text by path without ending, as "diffusion/test_grids".

    Every package has a folder of its name in tests/, every single module a file there, and a file that is named after a module,
    "test_grids" or "test_grids_of_time", lies in the folder of that module's package. A file that imports from the package of its folder
    may have any name.
    """
    homes: dict[str, set[str]] = {}  # name of a module or package -> the folders in which its tests may lie
    for parts in (name.split(".")[1:] for name in sources if "." in name):
        for depth, part in enumerate(parts):
            homes.setdefault(part, set()).update({parts[0] if depth else "", *(["/".join(parts[:depth])] if depth else [])})
    packages = {name.split(".")[1] for name in sources if name.count(".") > 1}
    files = [tuple(test.rpartition("/")[::2]) for test in sorted(tests)]
    folders = {folder.split("/")[0] for folder, _ in files} - {""}
    faults = [f"tests/{folder}: no package {PACKAGE}.{folder} that it mirrors" for folder in sorted(folders - packages - CROSSING)]
    faults += [f"{PACKAGE}.{name}: no folder tests/{name}" for name in sorted(packages - folders)]
    single = {name.split(".")[1] for name in sources if name.count(".") == 1} - packages - UNTESTED_ALONE
    at_top = {name for folder, name in files if not folder}
    untested = sorted(name for name in single if not any(_named(test, name) for test in at_top))
    faults += [f"{PACKAGE}.{name}: no file tests/test_{name}.py" for name in untested]
    for folder, test in files:
        path, room = f"{folder}/{test}".lstrip("/"), folder.split("/")[0]
        if not (room in CROSSING or path in THEMES or path in ABOUT_ALL or (room and f"{PACKAGE}.{room}" in tests[path])):
            faults += _misplaced(folder, test, homes)
    return faults


def tests_of(root: Path) -> dict[str, str]:
    """The text of every file of tests, by its path below `root` without ending."""
    return {path.relative_to(root).with_suffix("").as_posix(): path.read_text(encoding="utf-8") for path in root.rglob("test_*.py")}


def _misplaced(folder: str, test: str, homes: Mapping[str, set[str]]) -> list[str]:
    found = {name: folders for name, folders in homes.items() if _named(test, name)}
    if any(folder in folders for folders in found.values()) or (folder and not found):
        return []
    where = sorted(f"tests/{home}" for folders in found.values() for home in folders if home)
    return [f"tests/{folder}/{test}.py".replace("//", "/") + f": move it to {' or '.join(where) or 'the folder of a package'}"]


def _named(test: str, module: str) -> bool:
    return test == f"test_{module}" or test.startswith(f"test_{module}_")


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
        head = _entry(f"class {name}", value if made else None)  # fields of a dataclass are in its signature
        return [*head, *(line for key, item in sorted(public.items()) for line in _entry(f"{name}.{key}", item))]
    return _entry(name, value)


def _is_method(item: Any) -> bool:
    return inspect.isfunction(item) or isinstance(item, property | classmethod | staticmethod | functools.cached_property)


def _entry(name: str, value: Any) -> list[str]:
    """A name with its signature: names, kinds and defaults; not the annotations, which Python versions print differently.

    One line, or one a parameter where that line would be longer than RECORD_WIDTH, so that a change shows as the line that changed.
    """
    if not callable(value):
        return [name]
    if hasattr(value, "model_rebuild"):
        value.model_rebuild()  # a model of pydantic may be built at its first use, and has its fields as a signature only then
    try:
        signature = inspect.signature(value)
    except ValueError:  # a class of C has none
        return [name]
    bare = [_bare(p) for p in signature.parameters.values() if p.name not in ("self", "cls")]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    if len(name + text) <= RECORD_WIDTH:
        return [name + text]
    return [f"{name}(", *(f"    {line}," for line in _parameter_lines(bare)), ")"]


def _bare(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter without its annotation; a default that is a whole record, as settings within settings are, by its class alone."""
    default, empty = parameter.default, inspect.Parameter.empty
    short = default if default is empty or len(repr(default)) <= RECORD_WIDTH // 2 else _Short(f"{type(default).__name__}(...)")
    return parameter.replace(annotation=empty, default=short)


class _Short(str):
    __repr__ = str.__str__


def _parameter_lines(parameters: list[inspect.Parameter]) -> Iterator[str]:
    kinds = inspect.Parameter
    for before, parameter in zip([None, *parameters], parameters, strict=False):
        if parameter.kind is kinds.KEYWORD_ONLY and (before is None or before.kind not in (kinds.KEYWORD_ONLY, kinds.VAR_POSITIONAL)):
            yield "*"
        yield str(parameter)


def drift(recorded: Iterable[str], found: Iterable[str]) -> list[str]:
    """What stands in only one of two records, each parameter behind the name that it belongs to."""
    old, new = list(_told_apart(recorded)), list(_told_apart(found))
    return [line for line in difflib.ndiff(old, new) if line.startswith(("+ ", "- "))]


def _told_apart(lines: Iterable[str]) -> Iterator[str]:
    head = ""
    for line in lines:
        head = head if line.startswith((" ", ")")) else line
        yield line if line == head else f"{head} {line.strip()}"


def documented(blocks: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Name and lines of what blocks of Python import from unnoise: a module counts by those of its names that the blocks use."""
    names = sorted(set().union(*(_imported_names(ast.parse(block)) for block in blocks)))
    values = [(f"{module}.{name}", getattr(importlib.import_module(module), name)) for module, name in names]
    return [(name, _entry(f"class {name}" if inspect.isclass(value) else name, value)) for name, value in values]


def _imported_names(block: ast.Module) -> set[tuple[str, str]]:
    """(module, name) for each name of unnoise that a block imports or reaches through an imported module."""
    names: set[tuple[str, str]] = set()
    for node in ast.walk(block):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if _is_module(module):
                    names |= {(module, used) for used in _attributes(block, alias.asname or alias.name)}
                else:
                    names.add((node.module or "", alias.name))
    return names


def _is_module(name: str) -> bool:
    base = ROOT.joinpath("src", *name.split("."))
    return base.is_dir() or base.with_suffix(".py").is_file()


def _attributes(block: ast.Module, name: str) -> set[str]:
    reached = (node for node in ast.walk(block) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return {node.attr for node in reached if isinstance(node.value, ast.Name) and node.value.id == name}


def shown() -> list[str]:
    """The Python that readers copy: one text for each page, and one for each example."""
    import pages

    texts = ["\n".join(block.code for block in pages.blocks(page, "python")) for page in pages.PAGES]
    return texts + [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.py"))]


def public() -> list[str]:
    """The surface of unnoise as it is, and below it what the documentation and the examples import beside it."""
    import unnoise

    lines = surface(unnoise, HOLDERS)
    for name, entry in documented(shown()):
        lines += [] if any(line.removeprefix("class ").split("(")[0] == name for line in lines) else entry
    return [*lines, "samplers: " + " ".join(info.name for info in unnoise.samplers())]


def recorded() -> list[str]:
    return RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    for line in drift(recorded(), public()):
        print(line)
    RECORD.write_text("\n".join(public()) + "\n", encoding="utf-8")
    redraw()
