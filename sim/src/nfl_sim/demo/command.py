"""The verb `nfl demo`."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    devices: Annotated[int, typer.Option(min=20, max=100, help="Number of devices.")] = 20,
    versions: Annotated[int, typer.Option(min=4, max=50, help="Good versions to publish.")] = 6,
    seed: Annotated[int, typer.Option(help="Decides who owns which images, and the order of samples.")] = 2,
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the fleet running for a look around, until Ctrl-C.")
    ] = False,
) -> None:
    """Watch a whole fleet on this machine: learn, seal, sum, validate, sign, roll out, merge, fall back, go on.

    Real FLARE processes, real mutual TLS, real signatures, real images. Everything it makes is below NFL_HOME/demo; it
    ends with a table, report.json and report.html there.

    \b
    Examples:
        nfl demo
        nfl demo --keep          # then, in another terminal: nfl --home .nfl/demo status
        nfl demo --versions 12 --seed 3
    """  # noqa: D301  # the backspace keeps the lines of the examples apart
    from nfl_core.cli.console import emit_result, invocation
    from nfl_sim.demo.report import table_of
    from nfl_sim.demo.run import run_demo

    report = run_demo(invocation().home, num_devices=devices, num_versions=versions, seed=seed, keep=keep)
    emit_result(report, text=table_of(report))
