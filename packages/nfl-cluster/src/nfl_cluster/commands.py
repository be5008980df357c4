"""The verbs `nfl cluster init|up|down|distil`, `nfl fleet token|propose|halt|rollback|pause|resume` and `nfl status`.

This module imports nothing heavy: `nfl --help` loads it.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nfl_core.cli.console import emit_result, invocation, stderr

cluster = typer.Typer(
    no_args_is_help=True,
    help="""Make, start and stop the sites of a fleet: root, keeper and leaves; teach its models.

    `init` makes everything once; `up` runs all sites on this machine in the foreground; `down` stops them from another
    terminal. `distil` needs no running fleet.
    """,
)
fleet = typer.Typer(
    no_args_is_help=True,
    help="""Admit devices, and steer what reaches them.

    `token` lets one device enrol; `propose` puts weights before the gates; `halt` and `rollback` steer what is rolled
    out, `pause` and `resume` the learning.
    Orders are durable: the root carries them out when it runs.
    """,
)


class Part(str, Enum):
    """What of a student is taught."""

    ALL = "all"
    HEAD = "head"


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


@cluster.command()
def distil(
    proxy: Annotated[Path, typer.Option(help="Proxy data: x, and y where it is known (-1 elsewhere); safetensors.")],
    out: Annotated[Path, typer.Option(help="Where the student's shared weights go; the work is kept beside it.")],
    student: Annotated[str, typer.Option(help="Model of the student, an entry point of nfl.models.")] = "small-cnn",
    teacher: Annotated[
        str | None, typer.Option(help="Downwards: FILE.onnx, FILE.safetensors or an entry point of nfl.teachers.")
    ] = None,
    ensemble: Annotated[
        list[str] | None, typer.Option(help="Upwards: a student of the fleet, like --teacher; once for each.")
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="Of each --ensemble, in order; default: even.")] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="Model of .safetensors teachers.", show_default="the student's")
    ] = None,
    graph: Annotated[
        Path | None, typer.Option(help="ONNX graph that runs the .safetensors teachers, instead of their model.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights that the student starts from.")] = None,
    heldout: Annotated[Path | None, typer.Option(help="Labelled samples that score both at the end.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.", show_default="the fleet's")] = None,
    part: Annotated[Part, typer.Option(help="What of the student is taught.")] = Part.ALL,
    temperature: Annotated[float, typer.Option(help="Softens both answers; 2 to 4 is usual.")] = 3.0,
    epochs: Annotated[int, typer.Option(help="Passes over the proxy data.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Samples a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of the first epoch; falls along half a cosine.")] = 2e-3,
    label_weight: Annotated[float, typer.Option(help="Of the labels that are known.")] = 1.0,
    hint_weight: Annotated[float, typer.Option(help="Of the likeness of features.")] = 0.0,
    max_shift: Annotated[int, typer.Option(help="Pixels by which images are moved at random.")] = 0,
    seed: Annotated[int, typer.Option(help="Of fresh weights and the order of samples.")] = 0,
) -> None:
    """Teach a student on proxy data, by a large teacher or by an ensemble of the fleet's students.

    A killed run goes on when the same command is given again, and ends with the same bytes.
    The result is no version yet: `nfl fleet propose` puts it before the gates.

    Examples:
        nfl cluster distil --teacher big.onnx --proxy proxy.safetensors --out new.safetensors
        nfl cluster distil --ensemble a.safetensors --ensemble b.onnx --proxy proxy.safetensors --out new.safetensors
    """
    from nfl_cluster.distil import DistilPlan, default_classes, rows_of, run_plan, teachers_of
    from nfl_core.learning.distil import DistilSettings

    plan = DistilPlan(
        student=student,
        num_classes=default_classes(invocation().home) if classes is None else classes,
        teachers=teachers_of(teacher, ensemble or []),
        weights=tuple(weight or ()),
        teacher_model=teacher_model,
        graph=graph,
        proxy=proxy,
        heldout=heldout,
        start=start,
        out=out,
        part=part.value,
        seed=seed,
        settings=DistilSettings(
            temperature=temperature,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            label_weight=label_weight,
            hint_weight=hint_weight,
            max_shift=max_shift,
        ),
    )
    result = run_plan(plan, say=stderr().print)
    emit_result(result, text=rows_of(result))


@fleet.command()
def propose(
    weights: Annotated[Path, typer.Argument(help="safetensors with the model's shared weights.", dir_okay=False)],
    reason: _Reason = "proposed by the operator",
) -> None:
    """Put weights before the gates as the next version's candidate, for instance a student of `nfl cluster distil`.

    The root judges them when it is free; `nfl status` shows what the gates said.

    Example:
        nfl fleet propose student.safetensors --reason "taught by the large model of May"
    """
    from nfl_cluster.proposal import propose as send_proposal

    emit_result({"order": send_proposal(_home_of_fleet(), weights, reason=reason)})


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
