"""The command ``fedleak claim``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from fedleak.cli.terminal import Device, Ending, Overrides, Quiet, Threads, Verbose, console, errors, interrupted, quieten
from fedleak.errors import ScenarioError

if TYPE_CHECKING:
    from fedleak.experiment.claims import Claim


def claim(
    file: Annotated[Path | None, typer.Argument(show_default=False)] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the claims of a folder, or FILE alone, with what our runs found; run none.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="The full form, for a GPU; the small one takes minutes on a CPU.")] = False,
    set_: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the cases; those finished there are kept. [default: runs/NAME-TIME]", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all cases, and run none.")] = False,
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Put a published claim to the test: run its cases, and hold each figure against the range that the claim lets expect.

    FILE is a TOML file, such as scenarios/claims/dlg.toml; with --list it may
    be a folder, by default scenarios/claims. Each case gets a run folder with a
    report. A file also says what our own run found: several claims do not hold
    in all they say. Three of the files need CIFAR-10, which is downloaded, or
    read from Parquet files that are there: --set data.path=FOLDER.

    Exit code: 0 all figures are in their ranges; 1 one is not; 2 wrong input,
    nothing started; 130 interrupted.
    """
    quieten(verbose)
    from fedleak.cli.live import Live
    from fedleak.cli.tables import findings_table
    from fedleak.experiment import claims
    from fedleak.experiment.check import check as check_scenario

    form: Literal["small", "full"] = "full" if full else "small"
    if list_:
        _list(claims.read_claims(file or Path("scenarios/claims")))
        return
    if file is None:
        raise ScenarioError("which claim? expected a TOML file, such as: fedleak claim scenarios/claims/dlg.toml; or --list")
    text = claims.read_claim(file)
    console.print(f"[bold]{escape(text.claim)}[/bold]\n{escape(text.source)}", highlight=False, soft_wrap=True)
    if dry_run:
        for case, scenario in claims.load_claim(file, form, set_ or []):
            check_scenario(scenario)
            console.print(f"  {case.name}: can run; {len(case.expect)} figure(s) expected", highlight=False)
        return
    place: list[Path] = []
    with Live(errors, quiet=quiet) as live:
        try:
            folder, findings = claims.run_claim(
                file,
                form=form,
                overrides=set_ or [],
                out=out,
                device=device,
                threads=threads,
                listener=live,
                on_case=lambda _, path: place.append(path.parent),
            )
        except KeyboardInterrupt:
            live.stop()
            interrupted(place[-1:], f"claim {file} --out {place[-1]}" if place else "claim")
    console.print(findings_table(findings))
    if text.verdict:
        console.print(f"[dim]Of the run behind the file:[/dim] {escape(text.verdict)}", highlight=False, soft_wrap=True)
    console.print(f"Reports: {escape(str(folder))}", highlight=False, soft_wrap=True)
    if not all(finding.holds for finding in findings):
        errors.print("Not every figure is in its range.", highlight=False)
        raise Ending(1)


def _list(found: list[tuple[Path, Claim]]) -> None:
    for path, text in found:
        console.print(f"[bold]{escape(str(path))}[/bold]", highlight=False, soft_wrap=True)
        for label, said in (("claim", text.claim), ("source", text.source), ("found", text.verdict)):
            console.print(f"  [dim]{label}:[/dim] {escape(' '.join(said.split()))}", highlight=False, soft_wrap=True)
