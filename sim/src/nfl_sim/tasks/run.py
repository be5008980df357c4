"""The verb `nfl task`: real tasks, learned by real agents, against what owners would have without a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from nfl_sim.tasks.report import TaskReport

app = typer.Typer(
    help="Learn real tasks whose owners differ by nature: speakers, wearers of a watch, robots.", no_args_is_help=True
)

_Seed = Annotated[int, typer.Option(min=0, help="Decides splits, initial weights and the order of samples.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A task; see them with `nfl task list`.")]
_Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures there, as JSON.")]


@app.command("list")
def list_tasks() -> None:
    """List the tasks: who the owners are, what makes a region, which model learns."""
    from rich.table import Table

    from nfl_core.cli.console import emit_result
    from nfl_sim.tasks import find_task, task_names

    tasks = [find_task(name) for name in task_names()]
    table = Table("task", "what", "an owner is", "a region is", "model", "rounds", box=None, pad_edge=False)
    for task in tasks:
        table.add_row(task.name, task.title, task.owner, task.regions, task.model, str(task.rounds))
    fields = ("name", "title", "owner", "regions", "model", "rounds")
    emit_result([{field: getattr(task, field) for field in fields} for task in tasks], text=table)


@app.command()
def run(
    name: _Name,
    rounds: Annotated[int | None, typer.Option(min=1, help="Versions to learn; the task's own number if none.")] = None,
    seed: _Seed = 1,
    out: _Out = None,
) -> None:
    """Let a fleet of real agents learn a task, then compare with learning alone and with FedAvg.

    Every owner gets a device: the real agent with its own keys, over mutual TLS, with masked contributions, signed
    versions, merges judged on its own holdout. Only FLARE's couriers are left out, so one process is enough. The two
    others spend the same passes over the same samples. The data are looked for below NFL_HOME/data and NFL_DATA.

    \b
    Examples:
        NFL_DATA=~/data nfl task run audio
        nfl task run inertial --rounds 5 --seed 2 --out figures.json
    """  # noqa: D301  # the backspace keeps the lines of the examples apart
    from nfl_core.cli.console import invocation, stderr
    from nfl_sim.tasks import find_task
    from nfl_sim.tasks.report import run_task

    task = find_task(name)
    report = run_task(
        task, home=invocation().home, rounds=rounds or task.rounds, seed=seed, say=lambda line: stderr().print(line)
    )
    _emit(report, out)


@app.command()
def measure(
    name: _Name,
    rounds: Annotated[int | None, typer.Option(min=1, help="Micro-updates an owner; the task's if none.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="How many seeds, from 1 on.")] = 3,
    shots: Annotated[int, typer.Option(min=0, help="Also teach newcomers so many samples of each class.")] = 0,
    out: _Out = None,
) -> None:
    """Measure methods over several seeds, without agents: the table in the task's expected.md.

    The same passes and samples for every method, averages in the clear. Use it to see what a task is worth, and
    `nfl task run` to see that the product delivers it.

    \b
    Examples:
        nfl task measure audio --shots 2
        nfl task measure inertial --seeds 1 --rounds 10
    """  # noqa: D301  # as above
    from nfl_core.cli.console import invocation, stderr
    from nfl_sim.tasks import find_task
    from nfl_sim.tasks.report import measure_task

    task = find_task(name)
    report = measure_task(
        task,
        home=invocation().home,
        rounds=rounds or task.rounds,
        seeds=tuple(range(1, seeds + 1)),
        shots=shots,
        say=lambda line: stderr().print(line),
    )
    _emit(report, out)


def _emit(report: TaskReport, out: Path | None) -> None:
    import json

    from nfl_core.cli.console import emit_result, to_json
    from nfl_core.durable import make_folder, write_file

    if out is not None:
        make_folder(out.absolute().parent)
        write_file(out, json.dumps(to_json(report), indent=2).encode("ascii"))
    emit_result(report, text=_table(report))


def _table(report: TaskReport) -> Table:
    from rich.table import Table

    title = (
        f"{report.task}: {len(report.owners)} owners, {report.rounds} rounds, seeds {', '.join(map(str, report.seeds))}"
    )
    columns = ("test accuracy, %", "mean owner", "worst owner", "sent an owner, kB", "CPU s an update")
    table = Table(*columns, title=title, box=None, pad_edge=False, title_justify="left")
    for row in report.rows:
        table.add_row(
            row.method,
            _spread(100 * row.mean, 100 * row.mean_deviation),
            _spread(100 * row.worst, 100 * row.worst_deviation),
            f"{row.bytes_up / 1000:.0f}" if row.bytes_up else "-",
            f"{row.update_cpu_s:.3f}" if row.update_cpu_s else "-",
        )
    return table


def _spread(value: float, deviation: float) -> str:
    return f"{value:.1f} +- {deviation:.1f}" if deviation else f"{value:.1f}"
