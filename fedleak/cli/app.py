"""The command line: ``fedleak run | attack | claim | sweep | deploy | leaderboard | report | list | explain | check``."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer
from rich.markup import escape

from fedleak import __version__, registry
from fedleak.cli import claim as claims
from fedleak.cli import deploy, machines
from fedleak.cli import sweep as sweeps
from fedleak.cli.terminal import (
    AllowCode,
    Device,
    Ending,
    Overrides,
    Quiet,
    ScenarioFile,
    Threads,
    Verbose,
    console,
    errors,
    importing,
    interrupted,
    quieten,
)
from fedleak.errors import FedleakError, ScenarioError, told
from fedleak.process.abandoned import leave

if TYPE_CHECKING:
    pass
from fedleak.cli.ending import fail, finish

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="A federated-learning testbed with an attacker built in.\n\n"
    "Flower clients train on private images; a curious server rebuilds their batches from the updates it receives. "
    "Start with [bold]fedleak run scenarios/quickstart.toml[/bold], then open the report.html that it names.",
)
deploy.app.add_typer(machines.app)
app.add_typer(deploy.app, name="deploy")


@app.command()
def run(
    scenario: Annotated[Path | None, typer.Argument(show_default=False)] = None,
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make. [default: runs/NAME-TIME]", show_default=False)] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this interrupted run folder, after its last whole round.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --resume: set damaged lines aside in a file of their own, and go on.")
    ] = False,
    allow_code: AllowCode = False,
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a scenario: train the federation, attack it in every round, write the run folder and its report.

    SCENARIO is a TOML file, such as scenarios/quickstart.toml; its keys: fedleak
    explain scenario; a model or data of your own, as module:function: fedleak
    explain own. With --resume the folder's own is run. Where that names
    code as package.module:name, which runs when it is looked up, it takes
    --allow-code, or SCENARIO, the same experiment, that names the same.

    --resume refuses a folder in which a line is damaged; with --repair such
    lines are set aside in *.damaged, and the report says what is missing. Of a
    run that ended after its last round it writes the summary and the report.

    The folder holds manifest.json, rounds.jsonl, reconstructions.jsonl (one
    line an image), captures/ (what the server saw, as safetensors), images/,
    summary.json and report.html; problems.jsonl where an attack could not be
    shown a round. Lines are flushed as they happen. It holds private images,
    and is readable by its owner only.

    A client that fails costs its reply, is named, and decides the exit code. An
    attack that raises, runs out of memory or hangs is a failed row; what counts
    as hanging says server.attack_limit, or ten times its budget_seconds and a
    minute; it is ended with its process, and the round goes on. Attacks run in
    a process of their own, which is told what the attacker may know; server.
    isolation = "none" runs them in the server's, for a debugger. Ctrl-C keeps
    all that is done; on Ray it waits for the attack at hand for at most 20 s.

    Exit code: 0 done; 1 done, but clients failed or the run broke off; 2 wrong
    input, nothing started; 130 interrupted.
    """
    quieten(verbose)
    with importing():
        from fedleak.cli.live import Live
        from fedleak.experiment.run import run as run_scenario
        from fedleak.scenario.schema import load_scenario
    if resume is not None and (out is not None or (set_ and scenario is None)):
        raise ScenarioError("--resume takes the folder's own scenario and goes on in the folder; leave out --out and --set")
    if resume is None and scenario is None:
        raise ScenarioError("which scenario? expected a TOML file, such as: fedleak run scenarios/quickstart.toml")
    if resume is None and repair:
        raise ScenarioError("--repair mends a run folder that is there; give it by --resume DIR")
    given = load_scenario(scenario, set_ or []) if scenario is not None else None
    place: list[Path] = []
    with Live(errors, quiet=quiet) as live:
        try:
            options: Any = {"device": device, "threads": threads, "listener": live, "on_start": place.append}
            result = run_scenario(given, out=out, resume=resume, repairing=repair, allow_code=allow_code, **options)
        except KeyboardInterrupt:
            live.stop()
            interrupted(place, "run")
    finish(result)


@app.command()
def attack(
    folder: Annotated[Path, typer.Argument(show_default=False)],
    attack: Annotated[list[str], typer.Option("--attack", help="Attack to run (repeatable); `fedleak list` names them.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Parameter of the attacks, such as --set restarts=3 (repeatable)."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="So many reconstructions at a time, each in its process.", show_default=False),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Make them on Ray: auto, local or HOST:PORT.", show_default=False),
    ] = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Attack a run's captures again, without the federation; an attack that it already holds is replaced.

    FOLDER is that of a finished or interrupted run. An attack with --set
    title=NAME stands beside those of other names.

    With --jobs or --ray the reconstructions are spread out, with the same
    results. Start the same command again after an interrupt or a kill, and it
    makes only those that are missing; a worker that dies is a failed row, and
    is tried again alone. An attack that takes a round's updates together is
    spread by rounds (by updates with --set together=1); one that must see the
    rounds in order (dlg-fb, cohort-difference, adaptive with joined) runs as
    one task.

    The cluster's machines are sent captures and see no private image. Rows,
    images and summary are those of one process bit for bit, but for clocks and
    memory, without budget_seconds and on processors of one kind. GPUs of a
    cluster are untested.
    """
    quieten(verbose)
    with importing():
        from fedleak.cli.live import Live
        from fedleak.experiment.attack_again import attack_run
        from fedleak.scenario.schema import attack_specs
    specs = attack_specs(attack, set_ or [])
    with Live(errors, quiet=quiet) as live:
        try:
            options: Any = {"device": device, "threads": threads, "jobs": jobs, "ray": ray, "listener": live}
            result = attack_run(folder, specs, allow_code=allow_code, **options)
        except KeyboardInterrupt:
            live.stop()
            given = {"--device": device, "--threads": threads, "--jobs": jobs, "--ray": ray}
            words = ["attack", str(folder), *(word for name in attack for word in ("--attack", name))]
            words += [word for item in set_ or [] for word in ("--set", item)]
            words += ["--allow-code"] if allow_code else []
            words += [word for option, value in given.items() if value is not None for word in (option, str(value))]
            interrupted([folder], shlex.join(words) if jobs or ray else "attack")
    finish(result)


app.command()(claims.claim)
app.command()(sweeps.sweep)
app.command()(sweeps.leaderboard)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(show_default=False)],
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged lines aside first, in a file of their own.")] = False,
) -> None:
    """Write the summary.json and report.html of the run in FOLDER again, from the rows that it holds; or a sweep's page.

    A report shows each image beside what was rebuilt of it and both guesses
    that saw no update, leakage over accuracy over epsilon by round, for each
    client seconds, bytes and what a plain sparse coding would take, and every
    fault: when, who, what, and what the run did. Results that are not above the
    guesses are flagged.

    A folder in which a line is damaged is refused; --repair sets such lines
    aside in *.damaged, and the page says how many are missing.
    """
    quieten(False)
    from fedleak.experiment.manifest import write_summary
    from fedleak.experiment.result import Result
    from fedleak.report.html import write_report
    from fedleak.runs.folder import RunFolder
    from fedleak.runs.repair import repair as set_aside
    from fedleak.sweeps.folder import is_sweep
    from fedleak.sweeps.page.html import write_sweep_report

    if is_sweep(folder):
        console.print(f"Report: {escape(str(write_sweep_report(folder)))}", highlight=False, soft_wrap=True)
        return
    opened = RunFolder.open(folder)
    if repair:
        with opened.alone():
            for done in set_aside(opened):
                errors.print(escape(str(done)), highlight=False, soft_wrap=True)
    try:
        summary = write_summary(opened)
        write_report(folder)
    except FedleakError as error:
        raise ScenarioError(str(error)) from error  # nothing else was to be done
    finish(Result(folder, summary))


@app.command("list")
def list_(
    wide: Annotated[
        bool, typer.Option("--wide", help="With what each needs to know, is for, costs, is broken by, and its source.")
    ] = False,
) -> None:
    """List what a scenario can name: attacks, defenses, label rules, data sources, models, strategies."""
    quieten(False)
    from fedleak.cli.catalogue import catalogue

    more: dict[str, dict[str, list[tuple[str, str]]]] = {}
    if wide:
        from fedleak.cli.reference import details

        more = details()
    for heading, entries in catalogue().items():
        console.print(f"[bold]{heading}[/bold]")
        width = max(len(name) for name in entries)
        for name, line in entries.items():
            console.print(f"  {name:<{width}}  {escape(line)}", highlight=False, soft_wrap=True)
            for label, text in more.get(heading, {}).get(name, []):
                console.print(f"  {'':<{width}}    [dim]{label}:[/dim] {escape(text)}", highlight=False, soft_wrap=True)
    console.print("\n[dim]fedleak explain NAME tells the formula, source, limits and parameters of one.[/dim]")
    if not wide:
        console.print("[dim]fedleak list --wide tells what each needs, is for, and costs.[/dim]")


@app.command()
def explain(
    name: Annotated[str, typer.Argument(show_default=False)],
) -> None:
    """Explain one plugin: what it does, its formula, source and limits, its parameters with their defaults, and what it needs.

    NAME is one that `fedleak list` prints; or scenario: every key of a
    scenario's file; own: what a model and a data source of your own, as
    module:function and module:Class, are given; threat: what an attacker may know; verdicts: the rules by
    which `fedleak sweep` judges a defense.
    """
    quieten(False)
    with importing():  # a plugin is imported to be explained
        from fedleak.cli.catalogue import explanation

        text = explanation(name)
    console.print(escape(text), highlight=False, soft_wrap=True)


@app.command()
def check(scenario: ScenarioFile, set_: Overrides = None) -> None:
    """Validate a scenario, and say how hard its case is, before anything is spent.

    It counts equations against unknowns, layer by layer: whether any attack can
    be exact. Every row of a run carries the count.

    What the network, a round's updates, a local step, grading and each attack
    need at the least is weighed against this machine's memory, or what its
    container was granted, before any of it is taken; what cannot be is refused
    with both figures.

    SCENARIO is a TOML file, such as scenarios/quickstart.toml.
    """
    quieten(False)
    with importing():
        from fedleak.cli.tables import counts_table
        from fedleak.experiment.check import check as check_scenario
        from fedleak.experiment.difficulty import difficulty
        from fedleak.scenario.schema import load_scenario
    checked = check_scenario(load_scenario(scenario, set_ or []))
    found = difficulty(checked)
    console.print(
        f"[bold]{escape(checked.scenario.name)}[/bold] can run. Digest {checked.scenario.digest[:12]}.", highlight=False
    )
    width = max(len(name) for name, _ in found.facts)
    for name, value in found.facts:
        console.print(f"  {name:<{width}}  {escape(value)}", highlight=False, soft_wrap=True)
    console.print(counts_table(found.layers))
    console.print(escape(found.verdict), highlight=False, soft_wrap=True)


def _version(asked: bool) -> None:
    if asked:
        console.print(f"fedleak {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Hold the options that stand before a command."""


def program() -> None:
    """Be the program ``fedleak``: run the command line, and end the process with it.

    At once, if an attack was left behind that could not be stopped. Whoever calls :func:`main` goes on living.
    """
    try:
        main()
    except BaseException as end:
        leave(end)
        raise


def main() -> NoReturn:
    """Run the command line; turn expected errors into one line and an exit code."""
    registry.BESIDE[:] = [str(Path.cwd())]  # a scenario may name the user's own module beside it
    try:
        raise Ending(app(standalone_mode=False) or 0)
    except Ending:
        raise
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        # Typer and Click may both add the same suggestion.
        message = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", error.format_message())
        command = error.ctx.command_path if error.ctx else "fedleak"
        fail("error", f"{message} See {command} --help.", 2)
    except ScenarioError as error:
        fail("error", str(error), 2)
    except FedleakError as error:
        fail("failed", str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except Exception:  # a fault of this program: its traceback is for whoever mends it
        raise
    except BaseException as error:  # noqa: BLE001
        fail("error", f"code that was asked for by name ended the program ({told(error)}); mend it", 2)
