"""`nfl model`: what levels make of a model, before a fleet learns with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nfl_core.cli.console import emit_result
from nfl_core.errors import ConfigError, NflError

if TYPE_CHECKING:
    from nfl_core.config import FleetConfig
    from nfl_core.learning.profile import ModelProfile

COLUMNS = (
    "level, scope, period, sync, optimizer, rate, tensors, parameters, share, bytes fp32, bytes sealed, bytes memory"
)
app = typer.Typer(help="Check a model and its levels.", no_args_is_help=True)


class NoTorchError(NflError):
    """Learning needs torch, which is not installed."""

    code = "model.no-torch"
    hint = 'install it: pip install "nfl-core[torch]"'


@app.callback()
def root() -> None:
    """Check a model and its levels."""


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="An installed model, or file.py:factory of any torch module.")],
    spec: Annotated[
        Path | None, typer.Option(metavar="FLEET.TOML", help="Levels; without it some are proposed.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Of one quantised value.", show_default="of the file, or 2")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Contributions that are summed.", show_default="of the file, or 32")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.", show_default="of the file, or 10")] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Of one input.", show_default="of the file, or 1,28,28")
    ] = None,
    view: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Shape in which the module takes one input.")
    ] = None,
    head: Annotated[str | None, typer.Option(metavar="LAYER", help="The classifier, when it is not found.")] = None,
) -> None:
    """Say what levels make of a model: who shares what, bytes up, memory, time; exit 3 when it does not fit."""
    config = _config(spec)
    try:
        from nfl_core.learning import LearningSettings, propose_spec
        from nfl_core.learning.profile import load_model, profile_model
    except ModuleNotFoundError as e:
        raise NoTorchError(f"learning cannot be loaded: {e}") from e
    module = load_model(
        model,
        num_classes=classes or config.model.num_classes,
        input_shape=_sizes(input_shape) or tuple(config.model.input_shape),
        head=head,
        view=_sizes(view),
    )
    profile = profile_model(
        module,
        config.spec if spec else propose_spec(module),
        settings=LearningSettings.of(config.learning),
        bits=bits or config.privacy.bits,
        max_batch=batch or (config.privacy.batch_max * config.privacy.max_weight if spec else 32),
    )
    emit_result({"model": profile, "proposed": spec is None}, text=_text(profile, is_proposed=spec is None))


def _config(path: Path | None) -> FleetConfig:
    from nfl_core.config import FleetConfig, FleetSection, LeafSection, load_fleet

    if path is not None:
        return load_fleet(path)
    return FleetConfig(fleet=FleetSection(name="none"), leaves=(LeafSection(site="leaf", region="region"),))


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError as e:
        raise ConfigError(f"shape is {text!r}, expected sizes like 1,28,28", hint="write numbers and commas") from e
    if min(sizes) < 1:
        raise ConfigError(f"shape is {text!r}, expected sizes of at least 1", hint="write numbers and commas")
    return sizes


def _text(profile: ModelProfile, *, is_proposed: bool) -> Group:
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS.split(", "):
        table.add_column(column, justify="left" if column in {"level", "scope", "optimizer"} else "right")
    for p in profile.levels:
        numbers = (f"{p.num_parameters:,}", f"{p.share:.1%}", f"{p.bytes_up_fp32:,}", f"{p.bytes_up_sealed:,}")
        head = (p.level.name, p.level.scope.value, str(p.level.period), str(p.level.sync_every), p.level.optimizer)
        table.add_row(*head, f"{p.learning_rate:g}", str(p.num_tensors), *numbers, f"{p.memory_bytes:,}")
    shape = ", ".join(map(str, profile.input_shape))
    sealed = f"{profile.bytes_up_sealed:,} bytes sealed ({profile.modulus_bits} bits a value)"
    lines = [
        f"up a version: {sealed}, {profile.bytes_up_fp32:,} as float32 or masked in 32 bits",
        f"private: {', '.join(profile.private) or 'nothing'}",
        f"one step of {profile.batch_size} samples: {profile.step_ms:.2f} ms at one thread",
        *(f"note: {note}" for note in profile.advice),
    ]
    title = f"{profile.model}: {profile.num_parameters:,} parameters, {profile.num_constants:,} constants"
    tail = f"\n\n{_toml(profile)}" if is_proposed else ""
    return Group(
        Text(f"{title}, inputs ({shape}), {profile.num_classes} classes"), table, Text("\n".join(lines) + tail)
    )


def _toml(profile: ModelProfile) -> str:
    import tomlkit

    levels = [p.level.model_dump(mode="json", exclude_defaults=True) for p in profile.levels]
    return "proposed levels, for fleet.toml:\n\n" + tomlkit.dumps({"levels": levels}).strip()
