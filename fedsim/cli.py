"""The command line. The only file that prints; bad input ends with one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Before anything imports torch: a spinning second thread can make a shared machine 40 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from rich.console import Console
from rich.markup import escape

from fedsim.facts import BadInput
from fedsim.scenario.errors import ScenarioError

if TYPE_CHECKING:
    from fedsim.campaign import Pair
    from fedsim.scenario.read import LoadedScenario
    from fedsim.statistics.reading import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which straggler policy reaches my accuracy soonest?",
)
out_console = Console(width=None if sys.stdout.isatty() else 100)
error_console = Console(stderr=True, soft_wrap=True)

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file (YAML).")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    scenario: ScenarioFile,
    out: OutFolder = Path("runs"),
    policy: Annotated[str | None, typer.Option(metavar="LABEL", help="Only this policy.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Only this seed.")] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes; results do not depend on it.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Run finished runs anew.")] = False,
) -> None:
    """Run every policy under every seed, and write tables and a report."""
    from fedsim.scenario.read import load_variants

    for _, loaded in load_variants(scenario):
        _run(loaded, out, policy, seed, jobs, again=again)


def _run(loaded: LoadedScenario, out: Path, policy: str | None, seed: int | None, jobs: int, *, again: bool) -> None:
    from fedsim.campaign import pairs, run_pairs
    from fedsim.commands.progress import RunProgress

    chosen = _chosen(loaded, pairs(loaded, out), policy, seed)
    todo = [pair for pair in chosen if again or not pair.is_done]
    if len(todo) < len(chosen):
        n_kept = len(chosen) - len(todo)
        out_console.print(f"{n_kept} of {len(chosen)} runs are finished already and kept (--again runs them anew).")
    try:
        with RunProgress(error_console, todo) as progress:
            run_pairs(loaded, todo, n_jobs=jobs, tell=progress.tell)
    except KeyboardInterrupt:
        n_done = sum(pair.is_done for pair in pairs(loaded, out))
        error_console.print(f"Interrupted. {n_done} finished runs are whole; the same command goes on from there.")
        raise typer.Exit(130) from None
    _conclude_scenario(loaded, out, chosen)


@app.command()
def check(scenario: ScenarioFile, as_json: Json = False) -> None:
    """Read a scenario, its data, its model and its policies; say what is wrong, run nothing."""
    from fedsim.run import check as check_scenario
    from fedsim.scenario.read import load_variants
    from fedsim.statistics.words import plural

    found = []
    for variant, loaded in load_variants(scenario):
        check_scenario(loaded)
        labels, n_seeds = [c.label for c in loaded.contenders], len(loaded.scenario.seed_sets)
        facts = {"name": loaded.scenario.name, "policies": labels, "n_runs": len(labels) * n_seeds}
        found.append(facts | {"scenario": loaded.resolved()})
        if not as_json:
            said = f"policies: {', '.join(labels)}; {plural(n_seeds, 'seed')}"
            which = "" if variant is None else f", variant {variant},"
            out_console.print(escape(f"{scenario}{which} is fine: {said}."), highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2))


@app.command()
def validate(
    scenario: ScenarioFile,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", min=100, help="Rounds of each policy; enough to see 1 % if left out.")
    ] = None,
    replicas: Annotated[int, typer.Option(metavar="N", min=2, help="Runs of a scenario that trains.")] = 200,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes; results do not depend on it.")] = 1,
    as_json: Json = False,
) -> None:
    """Hold every simulated quantity beside its closed form; exit code 1 if any of them disagrees."""
    from fedsim.commands.agreement import agreement
    from fedsim.commands.comparing import as_json as rows_as_json
    from fedsim.commands.validate import validate as compare
    from fedsim.scenario.read import load_variants

    def tell(label: str, n: int) -> None:
        error_console.print(f"{label}: {n} rounds", markup=False, highlight=False)

    rows = compare(load_variants(scenario), n_rounds=rounds, n_replicas=replicas, n_jobs=jobs, tell=tell)
    if as_json:
        print(json.dumps(rows_as_json(rows), indent=2))
    else:
        table, sentence = agreement(rows)
        (out_console if sys.stdout.isatty() else Console(width=180)).print(table)
        out_console.print(f"\n{escape(sentence)}", highlight=False, soft_wrap=True)
    if any(row.agrees is False for row in rows):
        raise typer.Exit(1)


@app.command()
def plan(scenario: ScenarioFile, out: OutFolder = Path("runs"), as_json: Json = False) -> None:
    """From closed forms alone: what waiting for more, longer deadlines, more steps or wider budgets would buy."""
    from fedsim.commands import plan as planning
    from fedsim.commands.planned import planned
    from fedsim.dashboard.plan_page import write_plan
    from fedsim.scenario.read import load_variants

    everything = []
    for _, loaded in load_variants(scenario):
        curves = planning.plan(loaded)
        everything += [{"scenario": loaded.scenario.name, **entry} for entry in planning.as_json(curves)]
        if as_json:
            continue
        tables, advice = planned(curves)
        for table in tables:
            out_console.print(table)
            out_console.print()
        for sentence in advice:
            out_console.print(escape(sentence), highlight=False, soft_wrap=True)
        folder = out / loaded.scenario.name
        folder.mkdir(parents=True, exist_ok=True)
        path = write_plan(folder / "plan.html", loaded.scenario.name, curves, advice)
        out_console.print(f"Page: {escape(str(path))}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(everything, indent=2))


@app.command()
def dashboard(
    folder: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of runs, or of one scenario's.")] = Path(
        "runs"
    ),
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 for any that is free.")] = 8050,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; this machine alone.")] = "127.0.0.1",
) -> None:
    """Look at runs in a browser, also while they grow; compare them, and plan. Ends with Ctrl-C."""
    from fedsim.commands.dashboard import serve

    def tell(address: str) -> None:
        out_console.print(
            f"Dashboard of {escape(str(folder))}: {address} (Ctrl-C ends it)", highlight=False, soft_wrap=True
        )

    serve(folder, host, port, tell)
    raise typer.Exit(130)


@app.command("list")
def list_shelves(as_json: Json = False) -> None:
    """The policies, models and data sets that a scenario may name."""
    from fedsim.commands.catalogue import catalogue

    shelves = catalogue()
    if as_json:
        print(json.dumps(shelves, indent=2))
        return
    for shelf, kinds in shelves.items():
        out_console.print(f"[bold]{shelf}[/bold]")
        for kind, line in kinds.items():
            out_console.print(f"  {kind:<16} {escape(line)}", highlight=False, soft_wrap=True)


@app.command()
def schema() -> None:
    """The JSON Schema of a scenario file, for editors."""
    from fedsim.scenario.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Scenarios' folders, such as runs/quickstart, or run folders."),
    ],
    png: Annotated[bool, typer.Option("--png", help="Also write every figure as PNG.")] = False,
    svg: Annotated[bool, typer.Option("--svg", help="Also write every figure as SVG.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write every figure as PDF.")] = False,
    style: Annotated[str, typer.Option(metavar="screen|paper", help="Look of these pictures.")] = "screen",
    width: Annotated[str, typer.Option(metavar="single|double", help="Columns of a paper's page.")] = "single",
) -> None:
    """Write summary and report anew from finished runs; the figures as pictures, if asked."""
    from fedsim.commands.reporting import draw, formats_of, pages

    formats = formats_of(png=png, svg=svg, pdf=pdf, style=style, width=width)
    for page in pages(folders):
        for reason in page.left_out:
            error_console.print(f"Left out: {reason}", markup=False, highlight=False)
        _conclude(page.folder, page.runs, is_whole=page.is_whole)
        for path in draw(page, formats, style, width):
            out_console.print(f"Picture: {escape(str(path))}", highlight=False, soft_wrap=True)


@app.command()
def export(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or scenarios' folders with all their runs.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="tensorboard|mlflow|wandb", help="The tracker.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Its folder; tensorboard, mlruns or . if left out.")
    ] = None,
) -> None:
    """Copy finished runs to an experiment tracker, without a network."""
    from fedsim.commands.export import export as export_runs
    from fedsim.commands.export import read

    runs, left_out = read(folders)
    for reason in left_out:
        error_console.print(f"Left out: {reason}", markup=False, highlight=False)
    out_console.print(export_runs(runs, to, out), markup=False, highlight=False, soft_wrap=True)


@app.command()
def new(
    what: Annotated[str, typer.Argument(metavar="policy|scenario|model")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where to put it.")] = Path(),
) -> None:
    """Write a small working policy, scenario or model to start from."""
    from fedsim.commands.new import new as write_new

    path = write_new(what, name, folder)  # type: ignore[arg-type]  # a word that it does not know is refused there
    out_console.print(f"{escape(str(path))} is written; its first lines say how to use it.", highlight=False)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(metavar="trainer")],
    case: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this case; may be repeated.")] = None,
    pairs: Annotated[int, typer.Option(metavar="N", min=1, help="Interleaved repeats of each case.")] = 7,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where torch computes.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure the trainer against the loops that people write, interleaved in one process (about 10 minutes)."""
    from fedsim.commands import bench as benchmark

    if what != "trainer":
        raise BadInput(f"{what!r} cannot be measured; choose trainer")
    unknown = [one for one in case or () if one not in benchmark.CASES]
    if unknown:
        raise BadInput(f"--case is {unknown[0]!r}, which is unknown; choose one of {', '.join(benchmark.CASES)}")
    measured = []
    for one in benchmark.measure(tuple(case or benchmark.CASES), pairs, device):
        measured.append(one)
        error_console.print(benchmark.line(one), highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(benchmark.as_json(measured), indent=2))


def _chosen(loaded: LoadedScenario, found: list[Pair], policy: str | None, seed: int | None) -> list[Pair]:
    labels, seeds = [c.label for c in loaded.contenders], [s.seed for s in loaded.scenario.seed_sets]
    if policy is not None and policy not in labels:
        raise BadInput(
            f"--policy is {policy!r}, which {loaded.source.path} does not have; choose one of {', '.join(labels)}"
        )
    if seed is not None and seed not in seeds:
        raise BadInput(f"--seed is {seed}, which {loaded.source.path} does not have; choose one of {seeds}")
    wanted = [pair for pair in found if policy in (None, pair.contender.label)]
    return [pair for pair in wanted if seed in (None, pair.seeds.seed)]


def _conclude_scenario(loaded: LoadedScenario, out: Path, chosen: list[Pair]) -> None:
    """Conclude with the scenario's own runs; those of other settings are named and left out.

    chosen: those that this command was asked for, of which it also says where real time went and what they note.
    """
    from fedsim.campaign import pairs
    from fedsim.commands.ending import notes, real_time
    from fedsim.statistics.reading import read_run

    found = pairs(loaded, out)
    stale = [pair.folder for pair in found if not pair.is_done and (pair.folder / "manifest.json").is_file()]
    for folder in stale:
        error_console.print(f"Left out: {folder} is a run of other settings, or damaged; run it anew", markup=False)
    runs = [read_run(pair.folder) for pair in found if pair.is_done]
    for run_ in runs:  # the scenario may have grown since a run that was kept
        run_.manifest["position"] = [c.label for c in loaded.contenders].index(run_.label)
    _conclude(out / loaded.scenario.name, runs)
    asked_for = {pair.folder for pair in chosen}
    own = [run_ for run_ in runs if run_.folder in asked_for]
    for note in (note for run_ in own for note in notes(run_)):
        error_console.print(note, markup=False, highlight=False)
    if (spent := real_time(own)) is not None:
        out_console.print(spent, highlight=False, soft_wrap=True)


def _conclude(folder: Path, runs: list[Run], *, is_whole: bool = True) -> None:
    """Summary (of whole scenarios), report, and what the terminal shows of them."""
    from fedsim.commands.ending import curve, ending, heard
    from fedsim.dashboard.report import write_report
    from fedsim.statistics.summary import summary, write_summary

    rows = summary(runs)
    if is_whole:
        write_summary(folder, rows)
    path = write_report(folder, runs, is_whole=is_whole)
    table, sentence = ending(runs, rows)
    out_console.print(table)
    for further in (heard(runs, rows), curve(runs, out_console.width)):
        if further is not None:
            out_console.print("", further, sep="\n")
    out_console.print(f"\n{escape(sentence)}", highlight=False, soft_wrap=True)
    out_console.print(f"Report: {escape(str(path))}", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """The `fedsim` command."""
    try:
        app(args=arguments)
    except (ScenarioError, BadInput) as problem:
        _refuse(str(problem))
    except BrokenPipeError:
        os._exit(1)  # whoever read our output has gone; there is nobody to tell
    except BrokenProcessPool:
        _refuse("A worker process was killed, often for memory. Finished runs are kept; try again with fewer --jobs.")
    except MemoryError as problem:
        _refuse(f"{problem or 'out of memory'}. Finished runs are kept; try a smaller model or batch, or fewer --jobs.")
    except OSError as problem:
        _refuse(f"{problem.filename or 'the output'}: {problem.strerror or problem}; choose another place")


def _refuse(line: str) -> Any:
    error_console.print(line, style="red" if error_console.is_terminal else None, markup=False, highlight=False)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
