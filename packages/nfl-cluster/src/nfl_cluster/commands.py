"""The verbs `nfl cluster init|up|down`, `nfl fleet token|halt|rollback|pause|resume` and `nfl status`.

This module imports nothing heavy: `nfl --help` loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nfl_core.cli.console import emit_result, invocation, stderr

cluster = typer.Typer(
    no_args_is_help=True,
    help="""Make, start and stop the sites of a fleet: root, keeper and leaves.

    `init` makes everything once; `up` runs all sites on this machine in the foreground; `down` stops them from another
    terminal.
    """,
)
fleet = typer.Typer(
    no_args_is_help=True,
    help="""Admit devices, and steer what reaches them.

    `token` lets one device enrol; `halt` and `rollback` steer what is rolled out, `pause` and `resume` the learning.
    Orders are durable: the root carries them out when it runs.
    """,
)

_Reason = Annotated[str, typer.Option(help="Why; stands in the journal.")]


@cluster.command()
def init(
    name: Annotated[str | None, typer.Option(help="Name of a new fleet; it stands in every certificate.")] = None,
    leaf: Annotated[
        list[str] | None, typer.Option(metavar="SITE:REGION", help="A leaf and its region; once for each leaf.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A fleet.toml to start from, instead of --name.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Make a fleet: free ports, keys and certificates, version 1 of the model, FLARE's start-up kits.

    Run it again to finish what was interrupted; it changes nothing that is there.

    Examples:
        nfl cluster init --name home --leaf leaf-1:kitchen --leaf leaf-2:garden
        nfl --home /srv/fleet cluster init --config fleet.toml
    """
    from nfl_cluster.init import init_fleet, wanted_config

    home = invocation().home
    made = init_fleet(home, wanted_config(home, name=name, leaves=leaf or [], file=config), say=stderr().print)
    emit_result(
        {
            "home": home,
            "fleet": made.fleet.name,
            "root": f"{made.root.host}:{made.root.enrol_port}",
            "leaves": {one.site: f"{one.host}:{one.port}" for one in made.leaves},
            "ca": home / "root/ca/ca.pem",
        }
    )


@cluster.command()
def up() -> None:
    """Run all sites of this fleet until Ctrl-C or `nfl cluster down`.

    The result is printed when every process serves; what happens later goes to stderr. Logs lie in HOME/run/logs.

    Example:
        nfl cluster up
    """
    from nfl_cluster.run_fleet import run_fleet

    home = invocation().home
    run_fleet(
        home, say=stderr().print, ready=lambda names: emit_result({"ready": True, "home": home, "processes": names})
    )


@cluster.command()
def down() -> None:
    """Stop all processes of this fleet on this machine, also what a killed supervisor left.

    Example:
        nfl cluster down
    """
    from nfl_cluster.processes import stop_recorded

    emit_result({"stopped": stop_recorded(invocation().home / "run")})


@fleet.command()
def token(
    device: Annotated[str, typer.Argument(help="Id of the device, for instance robot-7.")],
    leaf: Annotated[str, typer.Option(help="Leaf that it shall attach to.")],
) -> None:
    """Make a one-time token with which one device can enrol, and say where.

    Example:
        nfl fleet token robot-7 --leaf leaf-1
    """
    from nfl_cluster.init import mint_token
    from nfl_core.config import load_fleet

    home = invocation().home
    root = load_fleet(home / "fleet.toml").root
    emit_result(
        {
            "device": device,
            "token": mint_token(home, device, leaf=leaf),
            "root": f"{root.host}:{root.enrol_port}",
            "ca": home / "root/ca/ca.pem",
        }
    )


@fleet.command()
def halt(reason: _Reason = "asked for by the operator") -> None:
    """Stop the rollout of the present version: no further device gets it.

    Example:
        nfl fleet halt --reason "odd readings in the garden"
    """
    from nfl_cluster.operations import send

    emit_result({"order": send(_home_of_fleet(), "halt", reason=reason)})


@fleet.command()
def pause(reason: _Reason = "asked for by the operator") -> None:
    """Open no further learning rounds; what devices have sent waits.

    Example:
        nfl fleet pause --reason "exhibition week"
    """
    from nfl_cluster.operations import send

    emit_result({"order": send(_home_of_fleet(), "pause", reason=reason)})


@fleet.command()
def resume(reason: _Reason = "asked for by the operator") -> None:
    """Go on with learning rounds after a pause.

    Example:
        nfl fleet resume
    """
    from nfl_cluster.operations import send

    emit_result({"order": send(_home_of_fleet(), "resume", reason=reason)})


@fleet.command()
def rollback(
    to: Annotated[
        int | None, typer.Option(min=1, help="Version whose content comes back; default: the one before.")
    ] = None,
    reason: _Reason = "asked for by the operator",
) -> None:
    """Bring an older version's content back, as a new version, on every device.

    Example:
        nfl fleet rollback --to 3 --reason "version 4 misses doors"
    """
    from nfl_cluster.operations import send

    emit_result({"order": send(_home_of_fleet(), "rollback", to=to, reason=reason)})


def status(
    events: Annotated[int, typer.Option(min=0, help="How many of the last events to show.")] = 8,
) -> None:
    """Show what runs, which versions there are and what happened last.

    Examples:
        nfl status
        nfl --output json status --events 100
    """
    from nfl_cluster.status import read_status, render

    found = read_status(invocation().home, num_events=events)
    emit_result(found, text=render(found))


def _home_of_fleet() -> Path:
    """Return the home, after a look that there is a fleet in it."""
    from nfl_core.config import load_fleet

    home = invocation().home
    load_fleet(home / "fleet.toml")
    return home
