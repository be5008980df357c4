"""From pydantic's findings to one error that names place, key, what was found and expected, and the likely key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nfl_core.config.sections import FleetConfig
from nfl_core.errors import ConfigError


def explain(error: ValidationError, *, path: Path, origins: Mapping[str, str]) -> ConfigError:
    """Make one readable error of pydantic's list; the first finding leads, the others follow."""
    everything = error.errors(include_url=False)
    # A list is also called too short when one of its entries is wrong: what is deeper says it better.
    findings = [
        finding
        for finding in everything
        if not any(
            len(other["loc"]) > len(finding["loc"]) and other["loc"][: len(finding["loc"])] == finding["loc"]
            for other in everything
        )
    ]
    lines, hints = [], []
    for finding in findings:
        location = finding["loc"]
        key = ".".join(map(str, location))
        origin = _origin(key, origins) or str(path)
        if finding["type"] == "extra_forbidden":
            near = _nearest(location)
            lines.append(f"{origin}: unknown key {key}" + (f", did you mean {near}?" if near else ""))
            hints.append(
                f"write {near} instead of {key}" if near else f"remove {key}; `nfl config schema` lists the keys"
            )
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
    """Return the key that an unknown one likely means: a near one of its section, or the same of another section."""
    *parents, wrong = map(str, location)
    fields = _fields_at(parents)
    near = difflib.get_close_matches(wrong, fields, n=1, cutoff=0.6)
    if near:
        return ".".join([*parents, near[0]])
    for section, field in FleetConfig.model_fields.items():
        if wrong in _subfields(field) and parents[:1] != [section]:
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
