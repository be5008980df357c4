"""The verbs `nfl device enrol|run|status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="""Own a robot: enrol it, run its agent, look at it.

    A device is one folder. `enrol` makes its keys in there and fetches certificates with a one-time token; `run` lets
    it learn, infer, contribute and update; `status` shows what it runs and what it has learned.
    """,
)

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the device.")]


@app.command()
def enrol(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the new device; its name is the device's id unless --id.")
    ],
    token: Annotated[str, typer.Option(help="One-time token, from `nfl fleet token`.", envvar="NFL_TOKEN")],
    root: Annotated[str, typer.Option(metavar="HOST:PORT", help="Enrolment port of the root.")],
    ca: Annotated[Path, typer.Option(help="The fleet's CA, from somebody you trust.", exists=True, dir_okay=False)],
    device_id: Annotated[str | None, typer.Option("--id", help="Device id; default: name of the folder.")] = None,
) -> None:
    """Enrol this device in a fleet.

    Example:
        nfl device enrol --token 7Q2... --root 127.0.0.1:18440 --ca ca.pem robots/robot-7
    """
    from nfl_edge.enrol import enrol as run_enrolment

    _emit(run_enrolment(folder, token=token, root=root, ca_pem=ca.read_bytes(), device_id=device_id))


@app.command()
def run(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of enrolled devices.")],
    tap: Annotated[
        Path | None, typer.Option(help="Record every outgoing message of each device in this folder.")
    ] = None,
    leaf: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Leaf to talk to instead of the enrolled address.")
    ] = None,
) -> None:
    """Run the agents of one or more devices until SIGTERM or Ctrl-C.

    One line of JSON on stdout says when all are ready; the log goes to stderr. Devices of one host share a process and
    a trainer, and nothing else.

    Examples:
        nfl device run robots/robot-7
        nfl device run robots/*
    """
    from nfl_edge.serve import serve

    raise typer.Exit(serve(folders, tap_folder=tap, leaf_address=leaf))


@app.command()
def status(
    folder: _Folder, events: Annotated[int, typer.Option(min=0, help="How many of the last events to show.")] = 5
) -> None:
    """Show what a device runs, what it has learned, and what happened last. Works beside a running agent.

    Example:
        nfl --output json device status robots/robot-7
    """
    from nfl_edge.status import read_status

    _emit(read_status(folder, num_events=events))


def _emit(data: dict[str, object]) -> None:
    from nfl_core.cli.console import emit_result

    emit_result(data)
