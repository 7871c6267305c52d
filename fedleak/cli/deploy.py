"""The command line of deployments: ``fedleak deploy certs | shards | up | submit``."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fedleak.cli.terminal import AllowCode, Overrides, console, errors, interrupted, quieten
from fedleak.errors import ScenarioError

if TYPE_CHECKING:
    from fedleak.scenario.schema import Scenario

app = typer.Typer(
    no_args_is_help=True,
    help="Run scenarios on a real SuperLink, over TLS, with nodes that are known by their keys.\n\n"
    "On one machine: [bold]fedleak deploy certs --clients 4[/bold], then [bold]fedleak deploy up[/bold], and in a second "
    "terminal [bold]fedleak deploy submit scenarios/quickstart.toml[/bold]. Across machines: "
    "[bold]fedleak deploy bundle SCENARIO --name HOST[/bold] makes a folder for each; `superlink`, `server`, `client` and "
    '`register` start from it, as docker-compose.yml does. A SuperLink that runs already: `engine = "deployment"` and '
    '`superlink = { address = "HOST:8000", root_certificates = "ca.crt" }` in a scenario\'s federation.\n\n'
    "A client that is killed, cut off or slow costs its rounds and no more; a server that dies goes on with --resume. Each "
    "message starts a new process on its client, which imports torch: seconds a message. With a federation.timeout below an "
    "hour, keep the machines' clocks within ten minutes of each other, as a round's messages expire.\n\n"
    "What this protects from: keys and separate folders keep strangers out, and images from a server that looks at what it was "
    "sent. They do not protect one machine of the federation from another: whoever reaches the SuperLink's port may admit "
    "nodes and submit apps. Let the federation's machines alone reach it.",
)

_PLACE = "superlink.json"  # where `up` says how its SuperLink is reached
_DIR = Path("deployment")
Keys = Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of certificates and keys.")]


@app.command()
def certs(
    folder: Keys = _DIR,
    clients: Annotated[int, typer.Option(min=1, help="How many clients get a key.")] = 4,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or IP address that clients reach the SuperLink by, beside localhost (repeatable)."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How long the certificates are valid.")] = 365,
) -> None:
    """Make an authority, the SuperLink's certificate, a key for each client, and the secret between the servers.

    One folder for each service: superlink/, server/, client-0/ ...; give each
    its own and nothing else. Keep ca.key off all of them.
    """
    from fedleak.deploy.certificates import make_certificates

    make_certificates(folder, clients, name or [], days)
    console.print(f"Certificates and {clients} node key(s): {escape(str(folder))}", highlight=False, soft_wrap=True)
    console.print("[dim]Private keys are readable by you alone. Start with: fedleak deploy up[/dim]", highlight=False)


@app.command()
def shards(
    scenario: Annotated[Path, typer.Argument(show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("shards"),
    set_: Overrides = None,
) -> None:
    """Split SCENARIO's data into one folder for each client, and one for the server that holds no private image.

    Each client's holds the scenario's secret too, from which it draws batches
    and noise, and the server's does not; without one in the scenario, a new one.

    Give client 0's node the folder client-0, by --node-config 'partition-id=0
    num-partitions=N data-dir="..."', and the server's process the folder
    server, by the variable FEDLEAK_SERVER_DATA. A client that holds its folder
    alone trains on the same bits as one that opened the whole.
    """
    from fedleak.data.parts import write_shards
    from fedleak.scenario.schema import load_scenario

    given = load_scenario(scenario, set_ or [])
    folders = write_shards(given.data, given.federation.clients, given.seed, out, given.secret)
    console.print(f"{len(folders) - 1} client folder(s) and the server's: {escape(str(out))}", highlight=False, soft_wrap=True)


@app.command()
def up(
    folder: Keys = _DIR,
    clients: Annotated[int | None, typer.Option(min=1, help="How many. [default: one for each key]", show_default=False)] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the SuperLink, on this machine only.")] = 8000,
    shards: Annotated[
        Path | None,
        typer.Option(help="What `fedleak deploy shards` wrote; without it every service opens the scenario's own data."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Takes the run folders.")] = Path("runs"),
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain HTTP and nodes without keys; needs --clients, and no keys in DIR.")
    ] = False,
) -> None:
    """Start a SuperLink, the server's process and a SuperNode for each client on this machine, until Ctrl-C.

    Over TLS; a node whose key was not made by `fedleak deploy certs` in DIR is
    refused.
    """
    from fedleak.deploy.services import Layout, Services

    quieten(False)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore Ctrl-C otherwise
        signal.signal(number, signal.default_int_handler)
    layout = Layout(folder, runs, shards, port, insecure, clients)
    place, made = folder / _PLACE, not folder.exists()
    with console.status("starting"):
        services = Services(layout).__enter__()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.write_text(services.superlink.model_dump_json(), encoding="utf-8")
        text = f"SuperLink at {services.superlink.address}, {services.clients} client(s) connected; run folders go to {runs}."
        console.print(escape(text), highlight=False, soft_wrap=True)
        option = "" if folder == _DIR else f" --deployment {folder}"
        console.print(
            f"Next, in another terminal: fedleak deploy submit SCENARIO{escape(option)}", highlight=False, soft_wrap=True
        )
        console.print(f"[dim]Logs: {escape(str(services.logs))}. Ctrl-C stops all.[/dim]", highlight=False, soft_wrap=True)
        services.watch()
    except KeyboardInterrupt:
        console.print("Stopping.", highlight=False)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave services behind
        place.unlink(missing_ok=True)
        if made:
            with suppress(OSError):  # somebody else's file in it keeps it
                folder.rmdir()
        services.stop()


@app.command()
def submit(
    scenario: Annotated[Path | None, typer.Argument(show_default=False)] = None,
    set_: Overrides = None,
    deployment: Annotated[Path, typer.Option(help="The DIR of a `fedleak deploy up` on this machine.")] = _DIR,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Another SuperLink, in place of --deployment.", show_default=False)
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="With --superlink: the ca.crt of its authority.", show_default=False)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="With --superlink: plain HTTP.")] = False,
    out: Annotated[
        str | None,
        typer.Option(help="Run folder: a name in the server's folder of runs, or an absolute path there.", show_default=False),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with this run folder of the server's; if it is on this machine, without SCENARIO.", show_default=False
        ),
    ] = None,
    allow_code: AllowCode = False,
    device: Annotated[str, typer.Option(help="Where the server's attacks compute: auto, cpu, cuda ...")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads for the attacks.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Run SCENARIO on a SuperLink, and wait for its result; Ctrl-C stops the run there.

    The run folder is written where the server's process runs. The same as
    `fedleak run` with engine = "deployment" and federation.superlink in the
    scenario.

    Exit code: 0 done; 1 done, but clients failed or the run broke off; 2
    refused, nothing started; 130 interrupted.
    """
    from fedleak.cli.ending import finish
    from fedleak.cli.live import Live
    from fedleak.engines.deployment import deploy
    from fedleak.experiment.plugins import check_plugins
    from fedleak.experiment.result import Result
    from fedleak.scenario import secret as secrets
    from fedleak.scenario.schema import load_scenario, parse_scenario

    quieten(False)
    given = load_scenario(scenario, set_ or []) if scenario is not None else _of_folder(resume, allow_code)
    if superlink is not None:
        place: dict[str, Any] = {"address": superlink, "insecure": insecure, "root_certificates": root_certificates}
    else:
        place = _running(deployment)
        # The nodes of `up` are this user's, on this machine; the server is told the fingerprint alone.
        if secrets.is_secret(given.secret):
            secrets.place(deployment, str(given.secret), named=True)
        elif given.secret is None and secrets.placed([deployment], None) is None:
            secrets.place(deployment, secrets.draw(), named=False)
    text = given.model_dump(mode="json")
    link = {**place, "root_certificates": _text(place["root_certificates"])}
    text["federation"] |= {"engine": "deployment", "superlink": link, "client_resources": None}
    asked = parse_scenario(text, str(scenario or resume))
    check_plugins(asked)
    started: list[Path] = []
    with Live(errors, quiet=quiet) as live:
        try:
            done = deploy(asked, out=out, resume=resume, device=device, threads=threads, listener=live, on_start=started.append)
        except KeyboardInterrupt:
            live.stop()
            interrupted(started, "deploy submit")
    finish(Result(done.path, done.summary, done.here))


def _of_folder(resume: str | None, allow_code: bool) -> Scenario:
    """Return the scenario of a run folder on this machine."""
    from fedleak.runs.folder import RunFolder
    from fedleak.scenario.code import refuse_code

    if resume is None:
        raise ScenarioError("which scenario? expected SCENARIO, a TOML file, or --resume, a run folder")
    if not (Path(resume) / "manifest.json").is_file():
        raise ScenarioError(f"--resume {resume}: not on this machine; give the SCENARIO that it was started with as well")
    found = RunFolder.open(Path(resume)).scenario
    if not allow_code:
        refuse_code(found, str(Path(resume) / "manifest.json"))
    return found


def _running(deployment: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((deployment / _PLACE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScenarioError(
            f"{deployment}: no deployment runs from this folder; start one with `fedleak deploy up {deployment}`, "
            "or name another by --superlink HOST:PORT --root-certificates ca.crt"
        ) from error
    return found


def _text(path: Path | str | None) -> str | None:
    return None if path is None else str(path)
