"""Methods of the learning benchmark: a strategy, and how its displacements travel.

`nested` is the product's default. Variants of it differ in one thing each and answer one question: which scope the
middle level should have, which period, how many bits, how often to exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from nfl_core.config import RootSection
from nfl_core.errors import NotFoundError
from nfl_core.learning import (
    Ditto,
    FedAla,
    FedAvg,
    FedBabu,
    FedPer,
    FedProx,
    FedRep,
    FedRod,
    FewBits,
    LocalOnly,
    Nested,
    Strategy,
    Transport,
    Whole,
    default_spec,
)
from nfl_core.levels import Level, NestedSpec, Scope

MOMENTUM = RootSection().server_momentum
SEALED_BATCH = 32  # owners whose sum is opened together in a real fleet; five more bits a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to learn.

    Attributes:
        title: For tables.
        strategy: Makes a strategy for one cohort.
        transport: Makes what carries its displacements.
        participation: Fraction of the owners that train and send in a round.
        tunes: It trains before each answer, so only its last rounds are scored.
        learned_scope: The server learns from the sums how far regional levels are pooled.
        server_momentum: Of the server's step; published methods have none.
    """

    title: str
    strategy: Callable[[], Strategy]
    transport: Callable[[], Transport] = Whole
    participation: float = 1.0
    tunes: bool = False
    learned_scope: bool = False
    server_momentum: float = 0.0


def levels(
    *,
    middle: Scope = Scope.REGION,
    head: Scope = Scope.GLOBAL,
    body: Scope = Scope.GLOBAL,
    periods: tuple[int, int, int] = (1, 1, 1),
    reduce: Literal["sum", "mean"] = "sum",
    sync_every: int = 1,
) -> NestedSpec:
    """Return the default levels with other scopes, periods or exchanges."""
    fast, *shared = default_spec().levels
    scopes = {"middle.*": middle, "head.*": head, "body.*": body}
    changed = [fast.model_copy(update={"period": periods[0]})]
    for level, period in zip(shared, periods[1:], strict=True):
        for scope in dict.fromkeys(scopes[name] for name in level.params):
            names = tuple(name for name in level.params if scopes[name] is scope)
            name = level.name if names == level.params else f"{level.name}-{scope.value}"
            update = {"name": name, "params": names, "scope": scope, "period": period}
            changed.append(level.model_copy(update={**update, "reduce": reduce, "sync_every": sync_every}))
    return NestedSpec.of(changed)


def blocks() -> NestedSpec:
    """Return small-cnn's private head and one regional level a block: which of them differ is found out."""
    shared = {
        "head": ("head.*",),
        "middle": ("middle.*",),
        "block-3": ("body.6.*", "body.7.*"),
        "block-2": ("body.3.*", "body.4.*"),
        "stem": ("body.0.*", "body.1.*"),
    }
    regional = [Level(name=name, params=params, scope=Scope.REGION) for name, params in shared.items()]
    return NestedSpec.of([default_spec().levels[0], *regional])


def _nested(
    title: str,
    spec: NestedSpec | None = None,
    *,
    transport: Callable[[], Transport] = Whole,
    participation: float = 1.0,
    learned_scope: bool = True,
    server_momentum: float = MOMENTUM,
) -> Method:
    return Method(
        title=title,
        strategy=lambda: Nested(spec=spec),
        transport=transport,
        participation=participation,
        learned_scope=learned_scope,
        server_momentum=server_momentum,
    )


def _two_bits() -> Transport:
    return FewBits(bits=2)


def _two_bits_sealed() -> Transport:
    return FewBits(bits=2, sealed_batch=SEALED_BATCH)


METHODS: Mapping[str, Method] = {
    "nested": _nested("nested (default)"),
    "local": Method(title="local only", strategy=LocalOnly),
    "fedavg": Method(title="FedAvg", strategy=FedAvg),
    "fedavg-ft": Method(title="FedAvg + fine-tune", strategy=lambda: FedAvg(tune_epochs=2), tunes=True),
    "fedprox-ft": Method(title="FedProx + fine-tune", strategy=lambda: FedProx(tune_epochs=2), tunes=True),
    "fedper": Method(title="FedPer", strategy=FedPer),
    "fedrep": Method(title="FedRep", strategy=FedRep),
    "fedbabu": Method(title="FedBABU", strategy=FedBabu, tunes=True),
    "ditto": Method(title="Ditto", strategy=Ditto),
    "fedala": Method(title="FedALA", strategy=FedAla),
    "fedrod": Method(title="FedRoD", strategy=FedRod),
    "nested-no-momentum": _nested("nested, no server momentum", server_momentum=0.0),
    "fedavg-ft-momentum": Method(
        title="FedAvg + fine-tune, server momentum",
        strategy=lambda: FedAvg(tune_epochs=2),
        tunes=True,
        server_momentum=MOMENTUM,
    ),
    "fedrep-momentum": Method(title="FedRep, server momentum", strategy=FedRep, server_momentum=MOMENTUM),
    "fedala-momentum": Method(title="FedALA, server momentum", strategy=FedAla, server_momentum=MOMENTUM),
    "two-levels": _nested("two levels: private, global", levels(middle=Scope.GLOBAL)),
    "two-regional": _nested(
        "two levels: private, regional",
        levels(middle=Scope.REGION, head=Scope.REGION, body=Scope.REGION),
        learned_scope=False,
    ),
    "three-fixed": _nested("three levels, the middle regional for good", learned_scope=False),
    "three-senses": _nested(
        "three levels, the body regional for good",
        levels(middle=Scope.GLOBAL, body=Scope.REGION),
        learned_scope=False,
    ),
    "all-learned": _nested("every shared block's scope learned", blocks()),
    "period-1-1-2": _nested("periods 1, 1, 2 (sum)", levels(periods=(1, 1, 2))),
    "period-1-2-4": _nested("periods 1, 2, 4 (sum)", levels(periods=(1, 2, 4))),
    "period-1-4-8": _nested("periods 1, 4, 8 (sum)", levels(periods=(1, 4, 8))),
    "period-1-2-4-mean": _nested("periods 1, 2, 4 (mean)", levels(periods=(1, 2, 4), reduce="mean")),
    "bits-2": _nested("2 bits", transport=_two_bits),
    "bits-2-sealed": _nested("2 bits, sealed", transport=_two_bits_sealed),
    "bits-2-no-feedback": _nested("2 bits, no error feedback", transport=lambda: FewBits(bits=2, feedback=False)),
    "bits-2-half": _nested("2 bits, half of the owners a version", transport=_two_bits, participation=0.5),
    "bits-2-sync-2": _nested("2 bits, every 2nd version", levels(sync_every=2), transport=_two_bits),
    "bits-2-sync-4": _nested("2 bits, every 4th version", levels(sync_every=4), transport=_two_bits),
    "bits-2-sealed-sync-2": _nested(
        "2 bits, sealed, every 2nd version", levels(sync_every=2), transport=_two_bits_sealed
    ),
}


def method_of(name: str) -> Method:
    """Return the method of that name. Raises NotFoundError."""
    if name not in METHODS:
        raise NotFoundError(f"no method {name!r}, there are {', '.join(METHODS)}")
    return METHODS[name]
