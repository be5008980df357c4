"""Methods of the learning benchmark: a strategy, and how its displacements travel.

`nested` is the product's default. Variants of it differ in one thing each and answer one question: which scope the
middle level should have, which period, how many bits, how often to exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
from nfl_core.levels import NestedSpec, Scope

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
    """

    title: str
    strategy: Callable[[], Strategy]
    transport: Callable[[], Transport] = Whole
    participation: float = 1.0
    tunes: bool = False


def levels(
    *,
    middle: Scope = Scope.REGION,
    head: Scope = Scope.GLOBAL,
    periods: tuple[int, int, int] = (1, 1, 1),
    reduce: str = "sum",
    sync_every: int = 1,
) -> NestedSpec:
    """Return the default levels with other scopes, periods or exchanges; the head moves with its scope."""
    fast, mid, slow = default_spec().levels
    with_head = ("middle.*", "head.*") if head is middle else ("middle.*",)
    body = ("body.*",) if head is middle else ("body.*", "head.*")
    changed = (
        fast.model_copy(update={"period": periods[0]}),
        mid.model_copy(
            update={
                "period": periods[1],
                "scope": middle,
                "params": with_head,
                "reduce": reduce,
                "sync_every": sync_every,
            }
        ),
        slow.model_copy(update={"period": periods[2], "params": body, "reduce": reduce, "sync_every": sync_every}),
    )
    return NestedSpec.of(changed)


def _nested(
    title: str, *, transport: Callable[[], Transport] = Whole, participation: float = 1.0, **kept: object
) -> Method:
    spec = levels(**kept)  # type: ignore[arg-type]  # the keywords of `levels`
    return Method(title=title, strategy=lambda: Nested(spec=spec), transport=transport, participation=participation)


METHODS: Mapping[str, Method] = {
    "nested": Method(title="nested (default)", strategy=Nested),
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
    "two-levels": _nested("two levels: private, global", middle=Scope.GLOBAL),
    "two-regional": _nested("two levels: private, regional", middle=Scope.REGION, head=Scope.REGION),
    "head-regional": _nested("three levels, head regional too", head=Scope.REGION),
    "period-1-1-2": _nested("periods 1, 1, 2 (sum)", periods=(1, 1, 2)),
    "period-1-2-4": _nested("periods 1, 2, 4 (sum)", periods=(1, 2, 4)),
    "period-1-4-8": _nested("periods 1, 4, 8 (sum)", periods=(1, 4, 8)),
    "period-1-2-4-mean": _nested("periods 1, 2, 4 (mean)", periods=(1, 2, 4), reduce="mean"),
    "bits-2": _nested("2 bits", transport=lambda: FewBits(bits=2)),
    "bits-2-sealed": _nested("2 bits, sealed", transport=lambda: FewBits(bits=2, sealed_batch=SEALED_BATCH)),
    "bits-2-no-feedback": _nested("2 bits, no error feedback", transport=lambda: FewBits(bits=2, feedback=False)),
    "bits-2-half": _nested(
        "2 bits, half of the owners a version", transport=lambda: FewBits(bits=2), participation=0.5
    ),
    "bits-2-sync-2": _nested("2 bits, every 2nd version", transport=lambda: FewBits(bits=2), sync_every=2),
    "bits-2-sync-4": _nested("2 bits, every 4th version", transport=lambda: FewBits(bits=2), sync_every=4),
    "bits-2-sealed-sync-2": _nested(
        "2 bits, sealed, every 2nd version",
        transport=lambda: FewBits(bits=2, sealed_batch=SEALED_BATCH),
        sync_every=2,
    ),
}


def method_of(name: str) -> Method:
    """Return the method of that name. Raises NotFoundError."""
    if name not in METHODS:
        raise NotFoundError(f"no method {name!r}, there are {', '.join(METHODS)}")
    return METHODS[name]
