"""Any exception as one line for stderr and an exit code."""

from __future__ import annotations

import re

from unnoise.cli.options import OPTIONS
from unnoise.errors import UnnoiseError, nearest

MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
TYPED = {  # what the library tells to do: how that is typed
    r"(?:load\(MODEL, )?parts=\{'(\w+)': FILE\}\)?": r"--part \1=FILE",
    r"lora=\[\(FILE, ([^)]+)\)\]": r"--lora FILE=\1",
    r"Model\.with_(lora|embedding)": r"--\1",
    r"load_(control|classifier), for generate\(\1=\.\.\.\)": r"--\1",
}
EXPECTED = {"int": "a whole number", "integer": "a whole number", "float": "a number"}


def refusal(error: BaseException) -> tuple[str, int]:
    """The line and the exit code; the codes are drawn in `unnoise.cli`."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "stopped", 130
    if isinstance(error, UnnoiseError):
        return one_line(as_typed(str(error))), 2
    if hasattr(error, "format_message"):  # typer's own, whichever of its versions raised it
        return one_line(usage(error)), 2
    if isinstance(error, MemoryError) or MEMORY.search(str(error)):
        return one_line(f"not enough memory ({error}): ask for a smaller --size or fewer pictures with --n"), 1
    if isinstance(error, OSError):
        place = f" {error.filename!r}" if error.filename else ""
        return one_line(f"cannot use the file{place}: {error.strerror or error}"), 1
    return one_line(f"unexpected {type(error).__name__}: {error} (a defect in unnoise; UNNOISE_DEBUG=1 shows where)"), 1


def as_typed(message: str) -> str:
    """The library's "got num_inference_steps 0" as "got --steps 0": what was typed."""
    for library, command in TYPED.items():
        message = re.sub(library, command, message)
    return re.sub(r"\bgot (\w+) ", lambda found: f"got {OPTIONS.get(found[1], found[1])} ", message)


def one_line(message: str) -> str:
    """`error: ...` without line ends."""
    return "error: " + " ".join(message.split())


def usage(error: BaseException) -> str:
    """What is wrong with the command line, with the nearest known name and where to read on."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "unnoise"
    option = getattr(error, "option_name", None)
    unknown = re.match(r"No such command '(.*?)'", str(error))
    if type(error).__name__ == "NoSuchOption" and context:
        known = [name for parameter in context.command.get_params(context) for name in parameter.opts if name.startswith("-")]
        return f"unknown option {option!r}: {suggestion(str(option), known, 'options')}; see {command} --help"
    if unknown and context:
        return f"unknown command {unknown[1]!r}: {suggestion(unknown[1], context.command.list_commands(context), 'commands')}"
    return value(error) or f"{error.format_message().rstrip('.')}; see {command} --help"  # type: ignore[attr-defined]


def value(error: BaseException) -> str:
    """A value of the wrong kind: which option, what was got, what was expected; empty for any other error."""
    parameter, details = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if parameter is None:
        return ""
    if details:  # typer 0.29 and later: pydantic's error keeps the value
        got, kind, otherwise = (details()[0][key] for key in ("input", "type", "msg"))
    elif found := re.match(r"'(.*)' is not a valid (\w+)", getattr(error, "message", ""), re.DOTALL):
        got, kind, otherwise = found[1], found[2], f"a valid {found[2]}"
    else:
        return ""
    return f"{parameter.opts[0]}: got {got!r}, expected {EXPECTED.get(kind.split('_')[0], otherwise)}"


def suggestion(name: str, known: list[str], kind: str) -> str:
    """The nearest names, or all of them."""
    near = nearest(name, known)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known {kind}: {', '.join(known)}"
