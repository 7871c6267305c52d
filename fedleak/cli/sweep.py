"""The commands ``fedleak sweep`` and ``fedleak leaderboard``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from fedleak.cli.terminal import (
    AllowCode,
    Device,
    Ending,
    Overrides,
    Quiet,
    Verbose,
    console,
    errors,
    importing,
    interrupted,
    quieten,
)
from fedleak.errors import ScenarioError

if TYPE_CHECKING:
    from fedleak.experiment.check import Checked
    from fedleak.sweeps.plan import Cell, Plan
    from fedleak.sweeps.sweep import SweepResult


def sweep(
    file: Annotated[Path, typer.Argument(show_default=False)],
    full: Annotated[bool, typer.Option("--full", help="The file's full form, for a GPU; the small one is the default.")] = False,
    set_: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the sweep; what is finished there is kept; runs/NAME by default.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time, one thread each; as many as cores by default.", show_default=False)
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: auto, local or HOST:PORT.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list all runs, start none.")] = False,
    found: Annotated[bool, typer.Option("--found", help="Show what the run behind FILE found, start none.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    r"""Run a scenario under many defenses, threats, networks and seeds; judge each.

    FILE is TOML: a scenario, what to vary, and the defenses. For example:

      name = "noise"
      \[scenario.data]                   # as in a scenario's own file
      source = "samples"
      [\[scenario.attacks]]
      name = "closed-form"
      [\[axes]]                          # every combination is one run
      key = "seed"
      values = \[1, 2]
      [\[axes]]
      name = "network"
      variants = \[{name = "narrow", set = \["model.channels=6"]},
                  {name = "wide", set = \["model.channels=12"]}]
      [\[defenses]]                      # each on its own, and none, unasked
      name = "gaussian-noise"
      strengths.std = \[1e-4, 1e-2]
      [\[defenses]]
      title = "clip+noise"
      chain = \[{name = "clipping", max_norm = 1.0},
               {name = "gaussian-noise", std = 1e-3}]

    Runs go side by side on the cores. Start the same command again after an
    interrupt or a kill and it goes on: nothing finished is repeated, a run that
    was broken off goes on after its last whole round, one that failed is tried
    again. Two sweeps cannot work in one folder at a time.

    The folder holds sweep.html (verdicts, charts, images), sweep.jsonl and
    sweep.csv (one line for each run and attack), and cells/ (the run folders).
    The rules of the verdicts (leaks, degrades, blocks, inconclusive):
    fedleak explain verdicts.

    Exit code: 0 done; 1 done, but runs or clients failed; 2 wrong input,
    nothing started; 130 interrupted.
    """
    quieten(verbose)
    with importing():
        from fedleak.cli.sweep_live import LiveSweep
        from fedleak.sweeps.plan import load_sweep
        from fedleak.sweeps.sweep import check_cells
        from fedleak.sweeps.sweep import sweep as run_sweep
    form: Literal["small", "full"] = "full" if full else "small"
    plan = load_sweep(file, form, set_ or [])
    if found:
        _show_found(file, plan)
        return
    if dry_run:
        checked = check_cells(plan, str(file))
        if not full:
            _try_full(file, set_ or [])
        _list_cells(checked)
        return
    place: list[Path] = []
    with LiveSweep(errors, quiet=quiet) as live:
        try:
            result = run_sweep(
                file,
                form=form,
                overrides=set_ or [],
                out=out,
                device=device,
                jobs=jobs,
                ray=ray,
                watcher=live,
                on_start=place.append,
            )
        except KeyboardInterrupt:
            live.stop()
            interrupted(place, _again(file, full, set_ or [], out, ray))
    _finish(result, f"fedleak sweep {file} --found" if plan.found is not None else None)


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", show_default=False)],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("leaderboard.html"),
    allow_code: AllowCode = False,
) -> None:
    """Make one static page out of many runs, by threat model.

    DIR is a run folder, or the folder of a sweep, of which every finished run
    counts. The page shows each attack undefended and against each defense, with
    data, network and batch beside it; runs that differ in the seed alone are
    one line. Unfinished runs are left out, and named.
    """
    quieten(False)
    from fedleak.sweeps.leaderboard import leaderboard as make

    board = make(folders, out, allow_code=allow_code)
    if board.unfinished:
        errors.print(f"{len(board.unfinished)} unfinished run(s) left out; the page names them.", highlight=False)
    console.print(f"{len(board.lines)} lines: {escape(str(board.page))}", highlight=False, soft_wrap=True)


def _finish(result: SweepResult, earlier: str | None) -> None:
    """Show the verdicts and where the report is, name the command that shows ``earlier`` ones, and end with 1 if runs failed."""
    from fedleak.cli.sweep_live import measured_lines, verdict_table

    console.print(verdict_table(result.verdicts))
    for line in measured_lines(result.verdicts):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if earlier is not None:
        console.print(f"[dim]What the run behind the file found: {escape(earlier)}[/dim]", highlight=False, soft_wrap=True)
    console.print(f"Report: {escape(str(result.report))}", highlight=False, soft_wrap=True)
    if result.failed:
        cells = len({row["cell"] for row in result.failed})
        errors.print(
            f"[red]{cells} run(s) failed[/red]; the report names them. Start it again to try them again.", highlight=False
        )
        raise Ending(1)


def _show_found(file: Path, plan: Plan) -> None:
    """Show what the file says that its run found."""
    from fedleak.cli.sweep_live import found_table

    if plan.found is None:
        raise ScenarioError(f"{file}: does not say what its run found; expected a table [found] in it")
    console.print(f"[bold]{escape(plan.about)}[/bold]\n{escape(plan.found.about.strip())}", highlight=False, soft_wrap=True)
    console.print(found_table(plan.found))
    console.print(f"{plan.found.when}: {escape(plan.found.command)}", highlight=False, soft_wrap=True)


def _try_full(file: Path, overrides: list[str]) -> None:
    """Refuse a file whose full form does not read, though it is the small one that was asked for; its data is not opened."""
    from fedleak.experiment.plugins import check_plugins
    from fedleak.sweeps.plan import load_sweep

    try:
        for cell in load_sweep(file, "full", overrides).cells:
            check_plugins(cell.scenario)
    except ScenarioError as error:
        raise ScenarioError(f"with --full: {error}") from error


def _list_cells(cells: list[tuple[Cell, Checked]]) -> None:
    for number, (cell, checked) in enumerate(cells, start=1):
        attacks = ", ".join(spec.result_name for spec in checked.scenario.attacks) or "no attack"
        console.print(f"{number:>4}  {escape(cell.name)}  [dim]{escape(attacks)}[/dim]", highlight=False, soft_wrap=True)
    control = sum(cell.control for cell, _ in cells)
    console.print(f"{len(cells)} runs can start, {control} of them undefended.", highlight=False)


def _again(file: Path, full: bool, overrides: list[str], out: Path | None, ray: str | None) -> str:
    """Return the command that goes on, to be pasted into a shell."""
    words = ["sweep", str(file), *(["--full"] if full else []), *(word for item in overrides for word in ("--set", item))]
    words += ["--out", str(out)] if out is not None else []
    words += ["--ray", ray] if ray is not None else []
    return shlex.join(words)
