"""What a command says and where: results on stdout, everything else on stderr.

A command calls `emit_result` once, at its end. With `--output json` stdout holds exactly one document,
`{"schema": "nfl/1", "ok": true, "data": ...}` or `{"schema": "nfl/1", "ok": false, "error": {...}}`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from rich.console import Console, RenderableType
from rich.table import Table

from nfl_core.errors import NflError

SCHEMA = "nfl/1"
HOME_VARIABLE = "NFL_HOME"
DEFAULT_HOME = Path(".nfl")
WIDTH_OF_PIPES = 200

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"


class Output(str, Enum):
    """Form of a command's result."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """What the options before the verb say.

    Attributes:
        home: Folder of the fleet, absolute.
        output: Form of the result.
        debug: Whether an error shows its traceback.
    """

    home: Path
    output: Output = Output.TEXT
    debug: bool = False

    @property
    def fleet_file(self) -> Path:
        """The fleet's configuration."""
        return self.home / "fleet.toml"


class _Current:
    """The invocation that runs in this process; a process runs one."""

    invocation: Invocation | None = None


def default_home() -> Path:
    """Return `NFL_HOME`, or `.nfl` in the working folder, as an absolute path."""
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().absolute()


def invocation() -> Invocation:
    """Return what the options before the verb say; outside of the command, the defaults."""
    return _Current.invocation or Invocation(home=default_home())


def set_invocation(value: Invocation | None) -> None:
    """Remember what the options before the verb say."""
    _Current.invocation = value


def stdout() -> Console:
    """Return the console for results."""
    return _console(to_stderr=False)


def stderr() -> Console:
    """Return the console for progress, warnings and errors."""
    return _console(to_stderr=True)


def _console(*, to_stderr: bool) -> Console:
    console = Console(stderr=to_stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_PIPES  # a table that is piped into another command must not lose its ends
    return console


def emit_result(data: object, *, text: RenderableType | None = None) -> None:
    """Print the result of a command, once.

    Args:
        data: A pydantic model, a dataclass, or what JSON can say; enums, paths and datetimes inside become text.
        text: How a person reads it; None: a plain list of `data`.
    """
    plain = to_json(data)
    if invocation().output is Output.JSON:
        print_json({"schema": SCHEMA, "ok": True, "data": plain})
    elif text is not None:
        stdout().print(text, soft_wrap=isinstance(text, str))
    else:
        stdout().print(_render(plain), soft_wrap=True)


def emit_error(error: NflError) -> None:
    """Print an error: three lines on stderr (what, why, what to do); with `--output json` also a document on stdout."""
    if invocation().output is Output.JSON:
        found: JsonValue = {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "exit_code": int(error.exit_code),
        }
        print_json({"schema": SCHEMA, "ok": False, "error": found})
    console = stderr()
    for label, style, line in (
        (f"error[{error.code}]", "bold red", error.message),
        ("why", "bold", _why(error)),
        ("try", "bold", error.hint),
    ):
        console.print(f"{label}: ", style=style, end="", markup=False, highlight=False)
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(document: JsonValue) -> None:
    """Print one JSON document on stdout."""
    stdout().print(json.dumps(document, indent=2, ensure_ascii=True), markup=False, highlight=False, soft_wrap=True)


def to_json(data: object) -> JsonValue:
    """Return `data` as what JSON can say.

    Raises:
        TypeError: It holds something else.
    """
    from pydantic import BaseModel

    if isinstance(data, BaseModel):
        return to_json(data.model_dump(mode="json"))
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {field.name: to_json(getattr(data, field.name)) for field in dataclasses.fields(data)}
    if isinstance(data, Enum):
        return to_json(data.value)
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, datetime):
        return data.isoformat()
    if isinstance(data, Mapping):
        return {str(key): to_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple, set, frozenset)):
        return [to_json(value) for value in (sorted(data) if isinstance(data, (set, frozenset)) else data)]
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    raise TypeError(f"a result holds {type(data).__name__}, expected models, dataclasses and plain JSON values")


def _render(plain: JsonValue) -> RenderableType:
    if isinstance(plain, Mapping):
        table = Table.grid(padding=(0, 2))
        for key, value in plain.items():
            table.add_row(key, _render(value))
        return table
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        table = Table.grid()
        for value in plain:
            table.add_row(_render(value))
        return table
    return "" if plain is None else str(plain)


def _why(error: NflError) -> str:
    """Return what caused an error; without a cause, what its class means."""
    cause = error.__cause__
    if cause is not None and str(cause):
        return f"{type(cause).__name__}: {str(cause).splitlines()[0][:300]}"
    return (type(error).__doc__ or "").strip().splitlines()[0] if type(error).__doc__ else error.code
