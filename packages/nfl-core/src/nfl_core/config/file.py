"""Reading and writing `fleet.toml`: file, then environment, then flags, each stronger than the one before."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from pydantic import ValidationError

from nfl_core.config.explain import explain
from nfl_core.config.sections import FleetConfig
from nfl_core.durable import write_file
from nfl_core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "NFL_"
FILE_MODE = 0o644  # holds no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedFleet:
    """A configuration and where its values come from.

    Attributes:
        config: The whole configuration.
        origins: Dotted key -> "env NFL_...", "flag ..." or the file, for every value that is not a default.
    """

    config: FleetConfig
    origins: Mapping[str, str]


def load_fleet(
    path: Path, *, env: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> FleetConfig:
    """Read a fleet's configuration.

    Args:
        path: The file.
        env: Environment; None: of this process.
        overrides: Dotted key -> value as text, stronger than everything else.

    Raises:
        ConfigError: The file is missing or not TOML, a key does not exist, or a value is not allowed.
    """
    return load_fleet_with_origins(path, env=env, overrides=overrides).config


def load_fleet_with_origins(
    path: Path, *, env: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> LoadedFleet:
    """Read a fleet's configuration and remember where each value comes from.

    Args and Raises: as of `load_fleet`.
    """
    tree = _read_toml(path)
    origins = {key: str(path) for key in _leaves(tree)}
    for name, text in sorted((os.environ if env is None else env).items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            key = ".".join(part.lower() for part in name[len(ENV_PREFIX) :].split("__"))
            _place(tree, key, text, origin=f"env {name}", origins=origins)
    for key, text in (overrides or {}).items():
        _place(tree, key, text, origin=f"flag {key}", origins=origins)
    try:
        config = FleetConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, path=path, origins=origins) from error
    return LoadedFleet(config=config, origins=origins)


def write_fleet(path: Path, config: FleetConfig) -> None:
    """Write a configuration, all values said aloud, in a folder that exists.

    Raises:
        StorageFullError: The disk is full; the old file stands.
        DurableError: The file cannot be written for another reason.
    """
    document = tomlkit.document()
    document.add(
        tomlkit.comment(
            "A federated nested learning fleet. `nfl config check` reads this file, `nfl config schema` describes it."
        )
    )
    for section, value in config.model_dump(mode="json", exclude_none=True).items():
        document.add(section, tomlkit.item(value))
    write_file(path, tomlkit.dumps(document).encode(), mode=FILE_MODE)


def json_schema() -> str:
    """Return the JSON Schema of `fleet.toml`, for editors."""
    return json.dumps(FleetConfig.model_json_schema(), indent=2)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        raise ConfigError(
            f"no file {path}", hint="make one with `nfl cluster init`, or say where it is with --home"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the permissions of the file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _leaves(tree: object, prefix: str = "") -> list[str]:
    """Return the dotted keys of all plain values."""
    if isinstance(tree, dict):
        children = list(tree.items())
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        children = list(enumerate(tree))
    else:
        return [prefix]
    return [leaf for key, value in children for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]


def _place(tree: dict[str, object], key: str, text: str, *, origin: str, origins: dict[str, str]) -> None:
    """Put the value that `text` means at a dotted key."""
    *parents, last = key.split(".")
    here: object = tree
    for part in parents:
        here = _child(here, part, key=key, origin=origin)
    value = _value(text, origin=origin)
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list) and last.isdecimal() and int(last) < len(here):
        here[int(last)] = value
    else:
        raise ConfigError(f"{origin}: there is no {key}")
    for old in [old for old in origins if old.startswith(f"{key}.")]:
        del origins[old]
    origins[key] = origin


def _child(here: object, part: str, *, key: str, origin: str) -> object:
    if isinstance(here, dict):
        return here.setdefault(part, {})
    if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
        return here[int(part)]
    raise ConfigError(f"{origin}: there is no {key}", hint="lists are counted from 0, for instance leaves.0.port")


def _value(text: str, *, origin: str) -> object:
    """Return a list or table for text that looks like one, else the text; pydantic turns it into numbers."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: {text!r} is not a TOML value: {error}") from error
