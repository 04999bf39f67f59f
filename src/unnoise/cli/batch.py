"""`unnoise generate --batch`: the pictures of each line of a JSONL file, each model loaded once.

A line is a request as JSON: the fields of `Request`, the model ("model", "variant", "prediction", "parts", "embedding"), "dtype", "device"
and an "id", without which its number is its id. Options on the command line are its defaults. The record that a picture carries is a line.

A line's pictures lie in the folder OUT/ID, together with line.json, which has a hash of the line. They are made in OUT/.ID.part, which gets
its name at the end: so a folder of that name holds all of a line, whenever the program was killed, and the same command goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unnoise.cli import again, drawing, outputs, requests, tags
from unnoise.cli.console import notice, print_json, progress
from unnoise.cli.drawing import Show
from unnoise.cli.older import modern
from unnoise.cli.options import Options
from unnoise.cli.refusals import refusal
from unnoise.cli.requests import Record
from unnoise.cli.sources import Source, source
from unnoise.errors import ArgumentError, FileError
from unnoise.pipeline.request import Request

if TYPE_CHECKING:
    from unnoise.pipeline.model import Model

DONE = "line.json"
ID = re.compile(r"\w[\w.-]{0,99}")


@dataclass(frozen=True)
class Line:
    """A line that can be made as far as that needs no model."""

    number: int
    id: str
    record: Record  # over the options
    request: Request
    source: Source

    @property
    def hash(self) -> str:
        """Name all that the line asks for."""
        text = json.dumps([self.record, self.source.record(), self.source.dtype, self.source.device], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of a line."""

    number: int
    id: str
    status: str  # "made", "skipped": it was there already, or "failed"
    pictures: list[dict[str, Any]] = field(default_factory=list)
    sheet: str | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    error: str | None = None


def run(options: Options, path: Path) -> None:
    """Make each line's pictures and say what became of it. Exits with 1 where a line failed. Raises ArgumentError or FileError."""
    check(options)
    texts = read(path)
    counts: Counter[str] = Counter()
    with progress(options.quiet) as show:
        for outcome in outcomes(texts, options, show):
            counts[outcome.status] += 1
            tell(outcome, options)
    notice(f"{counts.total()} lines: {counts['made']} made, {counts['skipped']} skipped, {counts['failed']} failed", options.quiet)
    if counts["failed"]:
        raise typer.Exit(1)


def check(options: Options) -> None:
    """Refuse options that say nothing beside --batch."""
    if options.again is not None:
        raise ArgumentError("got --batch and --from: leave one of them out; a line may be the record of a picture")
    if outputs.is_file_name(options.out):
        raise ArgumentError(f"--out {str(options.out)!r} names one file: --batch wants a folder, in which each line gets its own")
    outputs.check(options.out, 1)


def read(path: Path) -> list[tuple[int, bytes]]:
    """Return the lines that are not empty, with their numbers from 1. Raises FileError."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise FileError(f"--batch {str(path)!r}: {error.strerror or error}; expected a file with one JSON object a line") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def outcomes(texts: Iterable[tuple[int, bytes]], options: Options, show: Show) -> Iterator[Outcome]:
    """First the lines that are wrong without a model, then those of each model together, so that one is in memory at a time."""
    defaults, lines, ids = requests.parse(options), list[Line](), set[str]()
    for number, text in texts:
        name: Any = number
        try:
            record = object_of(text)
            name = record.pop("id", number)
            line = Line(number, check_id(name, ids), *parsed(requests.over(defaults, modern(record)), options))
        except Exception as error:
            yield failed(number, str(name), error)
        else:
            ids.add(line.id)
            lines.append(line)
    for model in dict.fromkeys(line.source for line in lines):
        yield from by_one_model(model, [line for line in lines if line.source == model], options, show)


def object_of(text: bytes) -> Record:
    """Read a line's JSON. Raises ArgumentError for what is no object."""
    expected = 'expected an object such as {"prompt": "a red apple"}'
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"no JSON ({error}): {expected}") from None
    if not isinstance(record, dict):
        raise ArgumentError(f"got {record!r}: {expected}")
    return record


def parsed(record: Record, options: Options) -> tuple[Record, Request, Source]:
    """Return a record with its tags as files, its request and its model. Raises ArgumentError, UnknownName or FileError."""
    record = tags.tagged(record, options.lora_dir)
    again.check_named(record, "this line")
    return record, requests.request(record), source(record, options.dtype, options.device)


def check_id(name: object, known: set[str]) -> str:
    """Return an id as a text. Raises ArgumentError for what cannot name a folder, or is the id of an earlier line."""
    text = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(text, str) or not ID.fullmatch(text):
        raise ArgumentError(f"got id {name!r}: expected up to 100 letters, digits, '.', '_' or '-', the first a letter or digit")
    if text in known:
        raise ArgumentError(f"got id {text!r}, which an earlier line has: expected another")
    return text


def by_one_model(model: Source, lines: list[Line], options: Options, show: Show) -> Iterator[Outcome]:
    """Make the lines of one model, which is loaded only where one of them is not there yet."""
    there = {line.id: found for line in lines if (found := done(line, options.out)) is not None}
    yield from there.values()
    rest = [line for line in lines if line.id not in there]
    if not rest:
        return
    try:
        loaded = drawing.load(model, show)
    except Exception as error:
        yield from (failed(line.number, line.id, error) for line in rest)
        return
    for text in drawing.evidence(loaded):
        notice(text, options.quiet)
    for line in rest:
        try:
            yield made(loaded, line, options, show)
        except Exception as error:
            yield failed(line.number, line.id, error)


def done(line: Line, out: Path) -> Outcome | None:
    """Return what is there of a line: its pictures, a refusal where another request's pictures have its name, or None."""
    folder = out / line.id
    if not folder.exists():
        return None
    try:
        found = json.loads((folder / DONE).read_bytes())
        if found["hash"] == line.hash:
            return Outcome(line.number, line.id, "skipped", found["pictures"], found["sheet"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a folder that no batch made
    error = FileError(f"{str(folder)!r} holds something else than this request's pictures: give another id, or another --out")
    return failed(line.number, line.id, error)


def made(model: Model, line: Line, options: Options, show: Show) -> Outcome:
    """Draw a line, and give its folder its name when all of it is written. Raises what the library raises, OSError."""
    began = time.perf_counter()
    folder, part = options.out / line.id, options.out / f".{line.id}.part"
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    result = drawing.draw(model, line.source, line.request, show)
    pictures = outputs.save_all(result, part, not options.no_metadata)
    sheet = outputs.save_sheet(result, part)
    report = {"pictures": [{**one, "path": _moved(one["path"], folder)} for one in pictures], "sheet": sheet and _moved(sheet, folder)}
    kept = without_prompts(report) if options.no_metadata else report
    (part / DONE).write_text(json.dumps({"id": line.id, "hash": line.hash, **kept}), encoding="utf-8")
    os.rename(part, folder)
    notes = [*outputs.notes(result.metadata), *again.differences(line.record, result.metadata[0])]
    return Outcome(line.number, line.id, "made", report["pictures"], report["sheet"], time.perf_counter() - began, tuple(notes))


def _moved(path: str, folder: Path) -> str:
    return str(folder / Path(path).name)


def without_prompts(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report for a disk on which no prompt may stand."""
    return {**report, "pictures": [{**one, "prompt": None} for one in report["pictures"]]}


def failed(number: int, name: str, error: Exception) -> Outcome:
    """Return the outcome of a line that was refused, or on which the machine failed."""
    if os.environ.get("UNNOISE_DEBUG") == "1":
        traceback.print_exception(error)
    return Outcome(number, name, "failed", error=refusal(error)[0].removeprefix("error: "))


def tell(outcome: Outcome, options: Options) -> None:
    """Paths on stdout and what was wrong on stderr, by the line's number; or one JSON object."""
    named = f"line {outcome.number}" + ("" if outcome.id == str(outcome.number) else f" ({outcome.id})")
    for note in outcome.notes:
        notice(f"note: {named}: {note}", options.quiet)
    if outcome.error is not None:
        notice(f"error: {named}: {outcome.error}")
    if options.as_json:
        print_json({name: value for name, value in asdict(outcome).items() if value not in (None, ())}, indent=None)
    elif not options.quiet and outcome.status == "made":
        outputs.tell(outcome.pictures, outcome.sheet)
