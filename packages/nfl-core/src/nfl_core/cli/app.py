"""The `nfl` command: options that every verb knows, verbs from entry points, errors in three lines.

A package adds a verb with an entry point of the group `nfl.commands`: a `typer.Typer` becomes a group of that name, a
plain function a command. Only the verb that is called is loaded; `nfl --help` loads each verb's module, so these
modules import heavy libraries inside their functions.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

import typer
import typer.core
import typer.main

from nfl_core.cli.console import Invocation, Output, default_home, emit_error, invocation, set_invocation, stderr
from nfl_core.errors import ExitCode, NflError

GROUP = "nfl.commands"
_BUILT_IN = {"config": "nfl_core.cli.config:app", "doctor": "nfl_core.cli.doctor:doctor"}
# Options of the root command that may stand anywhere on the line, and whether a value follows.
_ANYWHERE = {"--home": True, "--output": True, "-o": True, "--debug": False}
_EXIT_CODES = ", ".join(f"{int(code)} {code.name.lower().replace('_', ' ')}" for code in ExitCode)


class BrokenVerbError(NflError):
    """The package that brings a verb cannot be loaded."""

    code = "cli.broken-verb"
    hint = "run `nfl doctor`, then install the package that is named again"


class InternalError(NflError):
    """The product has a defect."""

    code = "internal"


def verbs() -> dict[str, EntryPoint]:
    """Return the verbs of all installed packages by name; where two packages bring one name, the first package's."""
    found = {name: EntryPoint(name=name, value=value, group=GROUP) for name, value in _BUILT_IN.items()}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        found.setdefault(point.name, point)
    return found


def load_verb(point: EntryPoint) -> typer.core.TyperGroup | typer.core.TyperCommand:
    """Load one verb.

    Raises:
        BrokenVerbError: Its module does not import, or it is neither a Typer app nor a function.
    """
    try:
        target = point.load()
    except (ImportError, AttributeError) as error:
        raise BrokenVerbError(f"the verb {point.name!r} cannot be loaded from {point.value}") from error
    if isinstance(target, typer.Typer):
        group = typer.main.get_group(target)
        group.name = point.name
        return group
    if callable(target):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name=point.name)(target)
        command = typer.main.get_command(single)
        if isinstance(command, typer.core.TyperCommand):
            return command
    raise BrokenVerbError(f"the verb {point.name!r} at {point.value} is neither a Typer app nor a function")


def _broken(error: BrokenVerbError, name: str) -> typer.core.TyperCommand:
    """Stand in for a verb that cannot be loaded, so that one broken package leaves the other verbs alone."""

    def fail() -> None:
        raise error

    return typer.core.TyperCommand(
        name,
        callback=fail,
        help=f"(cannot be loaded: {error.message})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


class Verbs(typer.core.TyperGroup):
    """The root command, which finds its verbs among the installed packages."""

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names of all verbs."""
        del ctx  # the verbs are the same in every context
        return sorted(verbs())

    def get_command(self, ctx: object, cmd_name: str) -> typer.core.TyperGroup | typer.core.TyperCommand | None:
        """Return one verb, None when there is none of that name."""
        del ctx
        point = verbs().get(cmd_name)
        if point is None:
            return None
        try:
            return load_verb(point)
        except BrokenVerbError as error:
            return _broken(error, cmd_name)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Exit codes: {_EXIT_CODES}.",
)


@app.callback()
def root(
    home: Annotated[
        Path | None, typer.Option(envvar="NFL_HOME", help="Folder of the fleet.", show_default=".nfl")
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Form of the result.")] = Output.TEXT,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
) -> None:
    """Federated nested learning: fleets of devices that learn for their owners and from each other."""
    set_invocation(
        Invocation(home=default_home() if home is None else home.expanduser().absolute(), output=output, debug=debug)
    )
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def options_first(arguments: Sequence[str]) -> list[str]:
    """Move the options of the root command to the front, so that they may follow the verb.

    Arguments behind `--` stay where they are.
    """
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, has_value, _ = argument.partition("=")
        if argument == "--":
            rest += [argument, *waiting]
            break
        if name not in _ANYWHERE or (has_value and not _ANYWHERE[name]):
            rest.append(argument)
            continue
        front.append(argument)
        if _ANYWHERE[name] and not has_value and waiting:
            front.append(waiting.pop(0))
    return front + rest


def run(command: Callable[[], object]) -> int:
    """Run a command at the border of the process: every error becomes three lines and an exit code."""
    try:
        command()
    except NflError as error:
        if invocation().debug:
            traceback.print_exc()
        emit_error(error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        stderr().print("interrupted")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of stdout, for instance `head`, has gone
        return int(ExitCode.OK)
    except Exception as error:  # the border of the process: say it and fail
        logging.getLogger(__name__).debug("internal error", exc_info=True)
        wrapped = InternalError(f"{type(error).__name__}: {error}")
        wrapped.__cause__ = error.__cause__
        emit_error(wrapped)
        return int(ExitCode.FAILED)
    return int(ExitCode.OK)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `nfl` and exit with its code."""
    line = options_first(sys.argv[1:] if arguments is None else arguments)
    raise SystemExit(run(lambda: app(line, prog_name="nfl")))


if __name__ == "__main__":
    main()
