"""Levels of a nested model: which parameters change how often, and who shares them.

A spec is a stack of levels, fastest first. It decides for every parameter the one level that owns it. Its rules:

* every parameter is in exactly one level, and every level owns at least one parameter;
* names are unique; periods do not shrink and each divides the next, so that slow steps fall on fast ones;
* a private level has no sync and no pull towards a shared value: it never leaves the device.

    >>> spec = NestedSpec.of([
    ...     Level(name="personal", params=("private.*",), scope=Scope.PRIVATE),
    ...     Level(name="fleet", params=("body.*", "head.*"), period=4, scope=Scope.GLOBAL),
    ... ])
    >>> spec.assign(["body.weight", "tail.weight", "private.weight"])
    Traceback (most recent call last):
    ...
    nfl_core.errors.SpecError: parameter 'tail.weight' is in no level, expected exactly one
    >>> spec.assign(["body.weight", "head.weight", "private.weight"])["head.weight"]
    'fleet'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nfl_core.errors import NotFoundError, SpecError
from nfl_core.ids import NAME_PATTERN, Digest, canonical_json, digest_of

USUAL_RATES = {"adam": 0.001, "adamw": 0.001, "m3": 0.0001}  # torch's default; for m3 as measured, see its docstring
MAX_PERIOD = 1_000_000  # local steps; beyond it a level would never step in a device's life


class Scope(str, Enum):
    """Who shares the parameters of a level: nobody, the devices of one region, or the whole fleet."""

    PRIVATE = "private"
    REGION = "region"
    GLOBAL = "global"

    @property
    def is_shared(self) -> bool:
        """Whether parameters of this scope leave the device (as sealed deltas)."""
        return self is not Scope.PRIVATE


class Level(BaseModel):
    """One level: its parameters and how they change.

    Attributes:
        name: Unique in the spec, `^[a-z0-9][a-z0-9-]{0,62}$`.
        params: Glob patterns over full parameter names (`*`, `?`, `[...]`), case counts.
        period: Local steps between two updates of the level, >= 1.
        reduce: How the gradients of a period become one: their sum or their mean.
        scope: Who shares the level.
        sync_every: Versions between two exchanges of a shared level, >= 1.
        optimizer: Rule of the level's step.
        learning_rate: Of the level's step, >= 0; None takes the fleet's, 0 lets the level stand still.
        state: What a merge does to the optimizer's memory: keep it, reset it, or rescale it: directions shrink to the
            share of the weights that stayed, scales and counts are kept.
        prox: Weight of the pull towards the last accepted version (FedProx), >= 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    params: tuple[str, ...] = Field(min_length=1)
    period: int = Field(default=1, ge=1, le=MAX_PERIOD)
    reduce: Literal["sum", "mean"] = "sum"
    scope: Scope
    sync_every: int = Field(default=1, ge=1)
    optimizer: Literal["sgd", "momentum", "adam", "adamw", "m3"] = "sgd"
    learning_rate: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    state: Literal["keep", "reset", "rescale"] = "keep"
    prox: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def owns(self, parameter: str) -> bool:
        """Whether one of the level's patterns matches the full name of a parameter."""
        return any(fnmatchcase(parameter, pattern) for pattern in self.params)


@dataclass(frozen=True, slots=True)
class NestedSpec:
    """Levels of one model, fastest first; valid from its making.

    Raises:
        SpecError: The levels break a rule of this module.
    """

    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise SpecError("a spec has no levels, expected at least one")
        names = [level.name for level in self.levels]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise SpecError(f"level names are used twice: {', '.join(doubled)}; expected unique names")
        for fast, slow in pairwise(self.levels):
            if slow.period % fast.period:
                raise SpecError(
                    f"level {slow.name!r} has period {slow.period}, expected a multiple of the {fast.period} of the "
                    f"faster level {fast.name!r} before it"
                )
        for level in self.levels:
            if level.scope is Scope.PRIVATE and (level.sync_every != 1 or level.prox):
                raise SpecError(
                    f"private level {level.name!r} has sync_every {level.sync_every} and prox {level.prox}, "
                    "expected none: nobody shares it"
                )

    @classmethod
    def of(cls, levels: Iterable[Level]) -> NestedSpec:
        """Make a spec of levels, fastest first.

        Raises:
            SpecError: The levels break a rule of this module.
        """
        return cls(tuple(levels))

    @property
    def shared(self) -> tuple[Level, ...]:
        """Levels whose parameters leave the device, fastest first."""
        return tuple(level for level in self.levels if level.scope.is_shared)

    @property
    def fingerprint(self) -> Digest:
        """Digest of everything the spec says."""
        return digest_of(canonical_json([level.model_dump(mode="json") for level in self.levels]))

    def level(self, name: str) -> Level:
        """Return the level of that name.

        Raises:
            NotFoundError: There is none.
        """
        for level in self.levels:
            if level.name == name:
                return level
        raise NotFoundError(f"no level {name!r}, the spec has {', '.join(level.name for level in self.levels)}")

    def assign(self, param_names: Sequence[str]) -> dict[str, str]:
        """Decide the level of every parameter.

        Args:
            param_names: Full names, unique.

        Returns:
            Parameter name -> level name, in the order of `param_names`.

        Raises:
            SpecError: A parameter is in no level or in several, or a level owns no parameter.
        """
        owners = {name: [level.name for level in self.levels if level.owns(name)] for name in param_names}
        for name, levels in owners.items():
            if len(levels) > 1:
                raise SpecError(f"parameter {name!r} is in levels {', '.join(levels)}, expected exactly one")
            if not levels:
                raise SpecError(f"parameter {name!r} is in no level, expected exactly one")
        for level in self.levels:
            if all(level.name not in levels for levels in owners.values()):
                raise SpecError(f"level {level.name!r} owns no parameter: none matches {', '.join(level.params)}")
        return {name: levels[0] for name, levels in owners.items()}

    def advice(self) -> tuple[str, ...]:
        """Name what is allowed but seldom meant: a slower level that fewer devices share, a rate for another rule."""
        order = [Scope.PRIVATE, Scope.REGION, Scope.GLOBAL]
        narrow = [
            f"{slow.name!r} ({slow.scope.value}) is slower than {fast.name!r} ({fast.scope.value}), yet fewer share it"
            for fast, slow in pairwise(self.levels)
            if order.index(slow.scope) < order.index(fast.scope)
        ]
        rates = [
            f"{level.name!r} takes the fleet's learning rate, which is meant for sgd; "
            f"{USUAL_RATES[level.optimizer]} is usual for {level.optimizer}"
            for level in self.levels
            if level.learning_rate is None and level.optimizer in USUAL_RATES
        ]
        return (*narrow, *rates)
