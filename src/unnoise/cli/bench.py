"""`unnoise bench`: measurements that help to choose. One verb a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unnoise.cli import outputs, requests
from unnoise.cli.console import notice, print_json, print_table, progress
from unnoise.errors import ArgumentError

if TYPE_CHECKING:
    from unnoise.evaluation.workbench import Bench, Report

bench = typer.Typer(rich_markup_mode=None)


@bench.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Measure what there is to choose from."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@bench.command("solvers")
def solvers(
    model: Annotated[str | None, typer.Option(help="A name from `unnoise models` or a .safetensors file.  [default: emoji]")] = None,
    mixture: Annotated[bool, typer.Option("--mixture", help="Data whose exact samples are known, instead of a model.")] = False,
    process: Annotated[str | None, typer.Option(help="With --mixture: sd, ddpm, cosine, edm, flow ...  [default: sd]")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be given again.  [default: a red apple]")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Pictures of each prompt.  [default: 2]")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise that every run starts from.")] = 0,
    budgets: Annotated[str, typer.Option(metavar="N,N,...", help="Evaluations of the denoiser.")] = "4,8,12,16,20,30,50",
    samplers: Annotated[str | None, typer.Option(metavar="NAME,...", help="From `unnoise samplers`.  [default: all]")] = None,
    spacings: Annotated[str | None, typer.Option(metavar="NAME,...", help="How the steps lie in time.  [default: all]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.  [default: auto]")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for solvers.json, solvers.md and solvers.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result and errors.")] = False,
) -> None:
    """Compare every sampler on every spacing at equal numbers of evaluations.

    Every run starts from the same noise. Its error is the distance from a reference: the exact solution, or a fine run of a high order.
    """
    of_model = {"model": model, "prompt": prompt, "n": n, "device": device}
    check(mixture, process, of_model)
    check_folder(out)
    evaluations = numbers("--budgets", budgets)
    with progress(quiet) as show:
        from unnoise.evaluation import workbench

        compared = subject(process or "sd", seed) if mixture else drawn(seed, of_model, show)
        report = run(workbench.bench(compared, names(samplers), names(spacings), evaluations), show)
    if out:
        write(report, out)
    print_json(plain(report)) if as_json else tell(report, out, quiet)


def check(mixture: bool, process: str | None, of_model: dict[str, Any]) -> None:
    """Refuse what does nothing."""
    idle = [name for name, value in of_model.items() if value is not None] if mixture else []
    if idle:
        raise ArgumentError(f"--{idle[0]} does nothing beside --mixture: leave one of them out")
    if process and not mixture:
        raise ArgumentError(f"--process: got {process!r} without --mixture; a model has its own process")
    for text in of_model["prompt"] or ():
        requests.check_text(text)


def names(text: str | None) -> list[str] | None:
    """NAME,NAME."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str) -> list[int]:
    """N,N."""
    parts = names(text) or []
    if not parts or not all(part.isdecimal() and 0 < int(part[:9]) and len(part) < 6 for part in parts):
        raise ArgumentError(f"{option}: got {text!r}, expected numbers from 1 such as 8,16,32")
    return [int(part) for part in parts]


def check_folder(out: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    if out is None:
        return
    from unnoise.evaluation import plots

    plots.require()
    outputs.check(out / "solvers.png", 1)


def subject(process: str, seed: int) -> Any:
    from unnoise.evaluation import workbench

    return workbench.mixture_subject(process, seed=seed)


def drawn(seed: int, of_model: dict[str, Any], show: Any) -> Any:
    """The model's subject. In float32: half precision would be measured instead of the solvers."""
    show("loading", 0, None)
    import unnoise
    from unnoise.evaluation import workbench

    model = unnoise.load(of_model["model"] or "emoji", dtype="float32", device=of_model["device"] or "auto")
    pictures = 2 if of_model["n"] is None else of_model["n"]
    return workbench.model_subject(model, of_model["prompt"] or ["a red apple"], seed=seed, pictures=pictures)


def run(asked: Bench, show: Any) -> Report:
    """Compare, and show how far it is."""
    from unnoise.evaluation import workbench

    show("reference", 0, None)
    against, rows = workbench.reference(asked.subject), []
    for row in workbench.rows(asked, against):
        rows.append(row)
        show(f"{row.sampler} on {row.spacing}", len(rows), len(asked))
    return workbench.report(asked, against, rows)


def plain(report: Any) -> dict[str, Any]:
    from unnoise.evaluation import verdicts

    return verdicts.as_json(report)


def write(report: Any, out: Path) -> None:
    from unnoise.evaluation import plots, verdicts

    out.mkdir(parents=True, exist_ok=True)
    (out / "solvers.json").write_text(json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "solvers.md").write_text(verdicts.markdown(report), encoding="utf-8")
    plots.plot(report, out / "solvers.png")


COLUMNS = ("budget", "sampler", "spacing", "steps", "evaluations", "error", "largest", "seconds", "own ms")
NOISE = ("sampler", "budget", "spacing", "distance")


def tell(report: Any, out: Path | None, quiet: bool) -> None:
    """The best few of each budget and the verdict on stdout, what they mean on stderr."""
    from unnoise.evaluation import verdicts

    for line in verdicts.notes(report):
        notice(line, quiet)
    if rows := [row for budget in report.budgets for row in verdicts.best(report.rows, budget)]:
        print_table(COLUMNS, [cells(row) for row in rows])
    if noisy := verdicts.noisy(report):
        notice(f"samplers that add noise, by Wasserstein-1 distance; as many perfect draws have {report.floor:.1e}", quiet)
        print_table(NOISE, [[row.sampler, row.budget, row.spacing, f"{row.mean:.2e}"] for row in noisy])
    print(verdicts.verdict(report))
    if out:
        print(f"solvers.json, solvers.md and solvers.png are in {out}")


def cells(row: Any) -> list[str]:
    plain = [row.budget, row.sampler, row.spacing, row.steps, row.evaluations]
    return [*map(str, plain), f"{row.error:.2e}", f"{row.largest:.2e}", f"{row.seconds:.3f}", f"{1e3 * row.overhead:.2f}"]
