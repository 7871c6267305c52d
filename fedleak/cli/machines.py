"""The commands of a deployment over several machines: ``fedleak deploy bundle | compose | superlink | server | ...``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from fedleak.cli.terminal import Overrides, console
from fedleak.errors import FedleakError, ScenarioError

if TYPE_CHECKING:
    from fedleak.scenario.schema import SuperLink

app = typer.Typer()

Own = Annotated[Path, typer.Argument(metavar="DIR", help="The service's own folder.", show_default=False)]
Address = Annotated[str, typer.Option("--superlink", metavar="HOST:PORT", help="Where the SuperLink is.", show_default=False)]
_PORT = 8000
MOST = 500  # containers of clients on one machine
_NODE_PORT = 9094


@app.command()
def bundle(
    scenario: Annotated[Path, typer.Argument(show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the folders.")] = Path("bundle"),
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or IP address that clients reach the SuperLink by, beside localhost (repeatable)."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How long new certificates are valid.")] = 365,
    set_: Overrides = None,
) -> None:
    """Make one folder for each machine: its keys, and its own part of SCENARIO's data.

    Copy superlink/, server/, client-0/ ... each to its machine and nothing
    else, and start it there; operator/ holds what `register` and `submit` need.
    Called again, keys stay, those of more clients are added, and the data are
    split anew.
    """
    from fedleak.deploy.bundle import make_bundle
    from fedleak.scenario.schema import load_scenario

    given = load_scenario(scenario, set_ or [])
    new = make_bundle(given, out, name or [], days)
    clients = given.federation.clients
    text = f"Folders of the SuperLink, the server, {clients} client(s) ({new} new key(s)) and the operator: {out}"
    console.print(escape(text), highlight=False, soft_wrap=True)


@app.command()
def compose(
    scenario: Annotated[Path, typer.Argument(show_default=False)],
    clients: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="How many. [default: the scenario's]", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write into; run folders land in its ./runs.")] = Path(),
) -> None:
    """Write docker-compose.yml and .env: SCENARIO in containers, with any number of clients.

    Start it there with: docker compose up. The image is built of fedleak's
    source, which has a Dockerfile: docker build -t fedleak:cpu PATH. After the
    server was killed or restarted, RESUME=NAME docker compose up goes on with
    the run folder NAME in ./runs.
    """
    from fedleak.deploy.compose import write_compose
    from fedleak.scenario.schema import load_scenario

    given = load_scenario(scenario)
    many = clients or given.federation.clients
    if many > MOST:
        raise ScenarioError(f"{scenario}: federation.clients = {many}; give --clients, at most {MOST}: they share one machine")
    for file in write_compose(scenario, given, many, out):
        console.print(f"Written: {escape(str(file))}", highlight=False, soft_wrap=True)
    if not (out / "Dockerfile").is_file():
        text = "No Dockerfile here: build the image first, docker build -t fedleak:cpu in fedleak's source, or name one by IMAGE."
        console.print(f"[dim]{text}[/dim]", highlight=False, soft_wrap=True)


@app.command()
def superlink(
    folder: Own,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 for this machine only.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535)] = _PORT,
) -> None:
    """Become the SuperLink, over TLS; a node whose key was not admitted is refused.

    Whoever reaches its port may admit nodes and submit apps, which run on every
    client and on the server: that is Flower's way. Open it to the federation's
    machines only. It keeps its runs and nodes in memory: when it dies, its runs
    break off, nodes are to be admitted again by `register`, and those that were
    connected end and must be started anew.
    """
    from fedleak.deploy.commands import become, superlink_command

    become(superlink_command(folder, host, port))


@app.command()
def server(
    folder: Own,
    address: Address,
    runs: Annotated[Path, typer.Option(help="Takes the run folders.")] = Path("runs"),
) -> None:
    """Become the process that runs scenarios' server side, and with it the attacks, next to this machine's GPU."""
    from fedleak.deploy.commands import SHARD, become, server_command

    _link(address)
    extra = {"FEDLEAK_RUNS": str(runs.resolve())}
    if (folder / SHARD).is_dir():
        extra["FEDLEAK_SERVER_DATA"] = str((folder / SHARD).resolve())
    try:
        runs.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ScenarioError(f"--runs {runs}: cannot be made ({error.strerror}); choose another folder") from error
    if not os.access(runs, os.W_OK):
        raise ScenarioError(
            f"--runs {runs}: cannot be written by user {os.getuid()}, it belongs to user {runs.stat().st_uid}; "
            "choose another folder, or run as its owner (with compose: USER_ID and GROUP_ID)"
        )
    become(server_command(folder, address), extra)


@app.command()
def client(
    folder: Own,
    address: Address,
    port: Annotated[int, typer.Option(min=1, max=65535, help="For the node's own use, on this machine only.")] = _NODE_PORT,
) -> None:
    """Become a client's SuperNode: it trains on the images in its folder, and asks the SuperLink for work.

    One that was killed is refused for up to a minute, until the SuperLink has
    missed its heartbeat.
    """
    from fedleak.deploy.commands import become, client_command, client_settings

    command = client_command(folder, address, client_settings(folder), host="127.0.0.1", port=port)
    _refuse_stranger(folder, _link(address, folder / "ca.crt"))
    become(command)


@app.command()
def register(
    operator: Annotated[Path, typer.Argument(metavar="DIR", help="The operator's folder.", show_default=False)],
    address: Address,
) -> None:
    """Admit the nodes whose public keys are in the operator's folder; before they start, and again after the SuperLink did."""
    from fedleak.deploy.certificates import node_keys
    from fedleak.engines.superlink import Control

    keys = node_keys(operator)
    if not keys:
        raise ScenarioError(f"{operator}: no nodes/client-*.pub in it; expected the folder operator of a `fedleak deploy bundle`")
    control = Control(_link(address, operator / "ca.crt"))
    try:
        for key in keys:
            control.register(key)
    finally:
        control.close()
    console.print(f"{len(keys)} node(s) admitted at {escape(address)}", highlight=False, soft_wrap=True)


def _refuse_stranger(folder: Path, link: SuperLink) -> None:
    """Refuse a node that the SuperLink would turn away; one that does not answer yet is waited for, as Flower's node does."""
    import httpx

    from fedleak.engines.superlink import Control
    from fedleak.engines.trust import ABSENT

    control = Control(link)
    try:
        known = control.admits(folder / "node.key")
    except FedleakError as error:
        if isinstance(error.__cause__, httpx.RequestError) and ABSENT not in str(error):
            raise  # a certificate, or another protocol: no waiting mends it
        return
    except ValueError as error:
        raise ScenarioError(f"{folder / 'node.key'}: no private key in OpenSSH format ({error})") from error
    finally:
        control.close()
    if not known:
        raise ScenarioError(
            f"{folder / 'node.key'}: an unknown key: the SuperLink at {link.address} has not admitted it; admit the nodes with "
            f"`fedleak deploy register operator --superlink {link.address}`, again after each start of the SuperLink"
        )


def _link(address: str, certificate: Path | None = None) -> SuperLink:
    from fedleak.scenario.schema import SuperLink

    try:
        return SuperLink(address=address, root_certificates=certificate)
    except ValidationError as error:
        raise ScenarioError(f"--superlink {address}: expected HOST:PORT, without https://") from error
