"""`fleet.toml`: one file that says what a fleet is, and the one way to read it.

Precedence, strongest first: command-line flag (`overrides`), environment (`NFL_ROOT__HOST=...`, two underscores between
section and key), file, default. A key that does not exist is an error that names the nearest key that does; every error
names the place it came from, the key, what was found and what was expected.

    >>> config = load_fleet(Path("fleet.toml"), env={"NFL_ROOT__HOST": "10.0.0.1"}, overrides={"privacy.bits": "4"})
    >>> config.root.host, config.privacy.bits
    ('10.0.0.1', 4)
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from typing_extensions import Self

from nfl_core.codec.quantise import MAX_BITS, MAX_MODULUS_BITS, MIN_BITS
from nfl_core.durable import write_file
from nfl_core.errors import ConfigError, SpecError
from nfl_core.ids import NAME_PATTERN
from nfl_core.levels import Level, NestedSpec, Scope

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "NFL_"
FILE_MODE = 0o644  # holds no secret

Name: TypeAlias = Annotated[str, Field(pattern=NAME_PATTERN)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]  # 0: `nfl cluster init` picks a free one
Seconds: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Host: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]

DEFAULT_LEVELS = (
    Level(name="personal", params=("private.*",), period=1, scope=Scope.PRIVATE),
    Level(name="regional", params=("middle.*",), period=2, scope=Scope.REGION),
    Level(name="fleet", params=("head.*", "body.*"), period=4, scope=Scope.GLOBAL),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FleetSection(_Section):
    """The fleet itself."""

    name: Name = Field(description="stands in every certificate")


class ModelSection(_Section):
    """The model that the fleet learns."""

    name: Name = Field(default="small-cnn", description="entry point of the group nfl.models")
    num_classes: int = Field(default=10, ge=2, le=100_000)
    input_shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default=(1, 28, 28), description="channels, height, width"
    )


class LearningSection(_Section):
    """Learning on the device."""

    batch_size: int = Field(default=32, ge=1)
    epochs_per_update: int = Field(default=2, ge=1, description="passes over the samples in one micro-update")
    refit_steps: int = Field(default=20, ge=0, description="steps of the fast level on cached features after a merge")
    learning_rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    holdout_fraction: float = Field(default=0.15, gt=0, lt=1)


class PrivacySection(_Section):
    """How contributions are hidden."""

    mode: Literal["sealed"] = Field(default="sealed", description="leaf sees masked vectors, keeper seeds, root sums of batches")
    bits: int = Field(default=2, ge=MIN_BITS, le=MAX_BITS, description="of one quantised value")
    n_min: int = Field(default=4, ge=2, description="smallest batch whose sum may be opened")
    batch_size: int = Field(default=5, ge=2, description="contributions that close a batch")
    batch_max: int = Field(default=8, ge=2, description="largest batch")
    max_weight: int = Field(default=1, ge=1, description="largest weight of one contribution")
    window_s: Seconds = Field(default=6.0, description="a batch of n_min closes after this time")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.n_min <= self.batch_size <= self.batch_max:
            raise ValueError(f"n_min {self.n_min}, batch_size {self.batch_size}, batch_max {self.batch_max}; expected them in rising order")
        if self.bits + (self.batch_max * self.max_weight - 1).bit_length() > MAX_MODULUS_BITS:
            raise ValueError(f"bits, batch_max and max_weight need more than {MAX_MODULUS_BITS} bits a value; expected smaller ones")
        return self


class RolloutSection(_Section):
    """How a version reaches the devices."""

    waves: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.2, 1.0), min_length=1, description="fraction of devices")
    min_soak_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    wave_deadline_s: Seconds = 30.0
    max_failure_fraction: Fraction = 0.2
    min_reports: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.waves) != sorted(set(self.waves)) or self.waves[-1] != 1.0:
            raise ValueError(f"waves are {list(self.waves)}; expected rising fractions that end at 1.0")
        return self


class GatesSection(_Section):
    """What a candidate must pass before it becomes a version."""

    max_drop_points: float = Field(default=1.0, ge=0, le=100, description="accuracy it may lose against the version before, in points")
    latency_budget_ms: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    max_bundle_bytes: int = Field(default=10_000_000, ge=1)


class RootSection(_Section):
    """The root site."""

    site: Name = "root"
    host: Host = "127.0.0.1"
    enrol_port: Port = 18440
    flare_port: Port = 18441
    admin_port: Port = 18442
    batches_per_version: int = Field(default=4, ge=1)
    max_staleness: int = Field(default=4, ge=0, description="versions a batch may be behind")
    server_learning_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    server_momentum: float = Field(default=0.0, ge=0, lt=1)


class KeeperSection(_Section):
    """The keeper site, run by another operator than the root."""

    site: Name = "keeper"
    n_min: int = Field(default=4, ge=2, description="the keeper's own floor, whatever a policy says")


class LeafSection(_Section):
    """One leaf site."""

    site: Name
    region: Name
    host: Host = "127.0.0.1"
    port: Port = Field(default=0, description="of the gateway for devices")


class EdgeSection(_Section):
    """The agent on a device."""

    poll_s: Seconds = 0.4
    latency_budget_ms: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    probation_inferences: int = Field(default=8, ge=1)
    max_accuracy_drop: Fraction = 0.15
    max_tries: int = Field(default=3, ge=1, description="boots of a new slot before the device falls back")


class FleetConfig(_Section):
    """Everything `fleet.toml` says."""

    fleet: FleetSection
    leaves: tuple[LeafSection, ...] = Field(min_length=1)
    model: ModelSection = ModelSection()
    levels: tuple[Level, ...] = Field(default=DEFAULT_LEVELS, min_length=1)
    learning: LearningSection = LearningSection()
    privacy: PrivacySection = PrivacySection()
    rollout: RolloutSection = RolloutSection()
    gates: GatesSection = GatesSection()
    root: RootSection = RootSection()
    keeper: KeeperSection = KeeperSection()
    edge: EdgeSection = EdgeSection()

    @model_validator(mode="after")
    def _check(self) -> Self:
        sites = [self.root.site, self.keeper.site, *(leaf.site for leaf in self.leaves)]
        if len(set(sites)) != len(sites):
            raise ValueError(f"sites are {', '.join(sites)}; expected unique names")
        root_ports = [(self.root.host, port) for port in (self.root.enrol_port, self.root.flare_port, self.root.admin_port)]
        ports = [(host, port) for host, port in [*root_ports, *((leaf.host, leaf.port) for leaf in self.leaves)] if port]
        if len(set(ports)) != len(ports):
            doubled = sorted({f"{host}:{port}" for host, port in ports if ports.count((host, port)) > 1})
            raise ValueError(f"{', '.join(doubled)} is given to two services; expected one each")
        if self.keeper.n_min > self.privacy.n_min:
            raise ValueError(f"keeper.n_min {self.keeper.n_min} is above privacy.n_min {self.privacy.n_min}; the keeper would refuse batches")
        try:
            _ = self.spec
        except SpecError as error:
            raise ValueError(f"levels: {error}") from error
        return self

    @property
    def spec(self) -> NestedSpec:
        """The levels as a spec."""
        return NestedSpec(self.levels)

    def leaf(self, site: str) -> LeafSection:
        """Return the leaf of that site name.

        Raises:
            ConfigError: There is none.
        """
        for leaf in self.leaves:
            if leaf.site == site:
                return leaf
        raise ConfigError(f"no leaf {site!r} in this fleet, it has {', '.join(leaf.site for leaf in self.leaves)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedFleet:
    """A configuration and where its values come from.

    Attributes:
        config: The whole configuration.
        origins: Dotted key -> "env NFL_...", "flag ..." or the file, for every value that is not a default.
    """

    config: FleetConfig
    origins: Mapping[str, str]


def load_fleet(path: Path, *, env: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None) -> FleetConfig:
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
        raise _explain(error, path=path, origins=origins) from error
    return LoadedFleet(config=config, origins=origins)


def write_fleet(path: Path, config: FleetConfig) -> None:
    """Write a configuration, all values said aloud, in a folder that exists.

    Raises:
        StorageFullError: The disk is full; the old file stands.
        DurableError: The file cannot be written for another reason.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment("A federated nested learning fleet. `nfl config check` reads this file, `nfl config schema` describes it."))
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
        raise ConfigError(f"no file {path}", hint="make one with `nfl cluster init`, or say where it is with --home") from error
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


def _explain(error: ValidationError, *, path: Path, origins: Mapping[str, str]) -> ConfigError:
    """Make one readable error of pydantic's list; the first finding leads, the others follow."""
    everything = error.errors(include_url=False)
    # A list is also called too short when one of its entries is wrong: what is deeper says it better.
    findings = [
        finding
        for finding in everything
        if not any(len(other["loc"]) > len(finding["loc"]) and other["loc"][: len(finding["loc"])] == finding["loc"] for other in everything)
    ]
    lines, hints = [], []
    for finding in findings:
        location = finding["loc"]
        key = ".".join(map(str, location))
        origin = _origin(key, origins) or str(path)
        if finding["type"] == "extra_forbidden":
            near = _nearest(location)
            lines.append(f"{origin}: unknown key {key}" + (f", did you mean {near}?" if near else ""))
            hints.append(f"write {near} instead of {key}" if near else f"remove {key}; `nfl config schema` lists the keys")
        elif finding["type"] == "missing":
            lines.append(f"{origin}: {key} is missing, expected a value")
        elif finding["type"] == "value_error":
            lines.append(f"{origin}: {f'{key}: ' if key else ''}{finding['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{origin}: {key} is {finding['input']!r}, expected: {_lower(finding['msg'])}")
    return ConfigError("; ".join(lines), hint=hints[0] if hints else None)


def _lower(message: str) -> str:
    message = message.removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    """Return where a key, or the nearest key above it, was set."""
    while key:
        if key in origins:
            return origins[key]
        inside = [origin for known, origin in origins.items() if known.startswith(f"{key}.")]
        if inside:
            return inside[-1]  # the strongest source stands last
        key = key.rpartition(".")[0]
    return None


def _nearest(location: Sequence[int | str]) -> str | None:
    """Return the full key that an unknown key most likely means: a key of its section, or the same key of another section."""
    *parents, wrong = map(str, location)
    fields = _fields_at(parents)
    near = difflib.get_close_matches(wrong, fields, n=1, cutoff=0.6)
    if near:
        return ".".join([*parents, near[0]])
    for section, field in FleetConfig.model_fields.items():
        if wrong in _subfields(field) and not parents[:1] == [section]:
            return f"{section}.{wrong}"
    return None


def _fields_at(parents: Sequence[str]) -> list[str]:
    fields = dict(FleetConfig.model_fields)
    for part in parents:
        if not part.isdecimal():
            fields = _subfields(fields[part])
    return list(fields)


def _subfields(field: FieldInfo) -> dict[str, FieldInfo]:
    """Return the fields of the section, or of the list's entries, that a field holds."""
    candidates = [field.annotation, *get_args(field.annotation)]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return dict(candidate.model_fields)
    return {}
