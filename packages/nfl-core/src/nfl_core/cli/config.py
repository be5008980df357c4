"""`nfl config`: show, check and describe `fleet.toml`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nfl_core.cli.console import emit_result, invocation, stdout
from nfl_core.errors import ConfigError

if TYPE_CHECKING:
    from nfl_core.config import LoadedFleet

app = typer.Typer(help="Show, check and describe fleet.toml.", no_args_is_help=True)

_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, for instance root.host=10.0.0.1."),
]


@app.command()
def show(changes: _Set = None) -> None:
    """Show every value and where it comes from."""
    loaded = _load(changes)
    rows = _rows(loaded)
    table = Table("key", "value", "from", box=None, pad_edge=False)
    for key, (value, origin) in rows.items():
        table.add_row(key, str(value), origin)
    emit_result({"config": loaded.config, "origins": dict(loaded.origins)}, text=table)


@app.command()
def check(changes: _Set = None) -> None:
    """Check fleet.toml; exit 3 and name what is wrong when it does not hold together."""
    config = _load(changes).config
    advice = config.spec.advice()
    lines = [f"{invocation().fleet_file} is valid: fleet {config.fleet.name}, {len(config.leaves)} leaves"]
    emit_result(
        {"valid": True, "advice": list(advice)}, text="\n".join([*lines, *(f"note: {line}" for line in advice)])
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of fleet.toml, for editors."""
    from nfl_core.config import json_schema

    stdout().print(json_schema(), markup=False, highlight=False, soft_wrap=True)


def _load(changes: list[str] | None) -> LoadedFleet:
    from nfl_core.config import load_fleet_with_origins

    overrides = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set is {change!r}, expected KEY=VALUE")
        overrides[key] = value
    return load_fleet_with_origins(invocation().fleet_file, overrides=overrides)


def _rows(loaded: LoadedFleet) -> dict[str, tuple[object, str]]:
    """Return dotted key -> (value, origin) for every value."""
    rows: dict[str, tuple[object, str]] = {}

    def walk(value: object, key: str) -> None:
        if isinstance(value, dict):
            children = list(value.items())
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            children = list(enumerate(value))
        else:
            rows[key] = (value, loaded.origins.get(key, "default"))
            return
        for name, child in children:
            walk(child, f"{key}.{name}" if key else str(name))

    walk(loaded.config.model_dump(mode="json"), "")
    return rows
