"""How a command ends: what it prints of a result, or of what went wrong, and its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from rich.markup import escape

from fedleak.cli.terminal import Ending, console, errors

if TYPE_CHECKING:
    from fedleak.experiment.result import Result


def fail(word: str, message: str, code: int) -> NoReturn:
    """Print one line, and end the process with ``code``."""
    errors.print(f"[red]{word}:[/red] {escape(' '.join(message.split()))}", highlight=False, soft_wrap=True)
    raise Ending(code)


def finish(result: Result) -> None:
    """Print what a run leaked and cost, and where its report is; end with 1 if clients failed."""
    from fedleak.cli.tables import cost_line, faults_table, leakage_table
    from fedleak.evaluation.beside import said as beside
    from fedleak.evaluation.privacy import said
    from fedleak.report.faults import faults
    from fedleak.runs.records import read_records

    summary = result.summary
    if summary["leakage"]:
        console.print(leakage_table(summary["leakage"]))
    if result.here and (found := faults(read_records(result.path))):
        console.print(faults_table(found))
    accuracy = summary["utility"]["accuracy"]
    if accuracy:
        console.print(f"Test accuracy after the last round: {accuracy[-1]:.1%}", highlight=False)
    if costs := cost_line(summary):
        console.print(costs, highlight=False, soft_wrap=True)
    if summary["privacy"]:
        console.print(said(summary["privacy"]), highlight=False, soft_wrap=True)
    for sentence in beside(summary, summary["privacy"]):
        console.print(sentence, highlight=False, soft_wrap=True)
    if summary["attack_failures"]:
        console.print(f"{summary['attack_failures']} update(s) gave an attack nothing; the report says why.", highlight=False)
    place = "Report" if result.here else "Report, on the server's machine"
    console.print(f"{place}: {escape(str(result.report))}", highlight=False, soft_wrap=True)
    if summary["client_errors"]:
        errors.print(f"[red]{summary['client_errors']} client reply(s) failed[/red]; the report names them.", highlight=False)
        raise Ending(1)
