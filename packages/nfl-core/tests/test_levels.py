from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nfl_core.errors import NotFoundError, SpecError
from nfl_core.levels import Level, NestedSpec, Scope


def level(name: str, params: str, *, period: int = 1, scope: Scope = Scope.GLOBAL) -> Level:
    return Level(name=name, params=(params,), period=period, scope=scope)


def test_every_parameter_gets_its_one_level(spec: NestedSpec) -> None:
    owners = spec.assign(["head.w", "private.w", "middle.w", "body.w"])
    assert owners == {"head.w": "fleet", "private.w": "personal", "middle.w": "regional", "body.w": "fleet"}
    assert list(owners) == ["head.w", "private.w", "middle.w", "body.w"]
    assert [shared.name for shared in spec.shared] == ["regional", "fleet"]


def test_parameter_covered_twice_is_refused() -> None:
    spec = NestedSpec.of([level("fast", "head.*"), level("slow", "*.w")])
    with pytest.raises(SpecError, match=r"'head\.w' is in levels fast, slow, expected exactly one"):
        spec.assign(["head.w", "body.w"])


def test_parameter_covered_by_no_level_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'body\.w' is in no level"):
        NestedSpec.of([level("fast", "head.*")]).assign(["head.w", "body.w"])


def test_level_without_parameters_is_refused() -> None:
    spec = NestedSpec.of([level("fast", "head.*"), level("slow", "bodi.*")])
    with pytest.raises(SpecError, match=r"'slow' owns no parameter: none matches bodi\.\*"):
        spec.assign(["head.w"])


def test_doubled_level_name_is_refused() -> None:
    with pytest.raises(SpecError, match="twice: fast"):
        NestedSpec.of([level("fast", "a"), level("fast", "b")])


def test_empty_spec_is_refused() -> None:
    with pytest.raises(SpecError, match="no levels"):
        NestedSpec.of([])


@given(periods=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_periods_divide_or_are_refused(periods: list[int]) -> None:
    levels = [level(f"l{index}", f"p{index}", period=period) for index, period in enumerate(periods)]
    if all(slow % fast == 0 for fast, slow in pairwise(periods)):
        assert NestedSpec.of(levels).levels == tuple(levels)
    else:
        with pytest.raises(SpecError, match="expected a multiple"):
            NestedSpec.of(levels)


@pytest.mark.parametrize("change", [{"sync_every": 2}, {"prox": 0.1}])
def test_private_level_with_sync_is_refused(change: dict[str, float]) -> None:
    private = Level.model_validate({"name": "own", "params": ["p"], "scope": "private"} | change)
    with pytest.raises(SpecError, match="private level 'own'"):
        NestedSpec.of([private])


@pytest.mark.parametrize(
    "change",
    [
        {"period": 0},
        {"params": []},
        {"name": "Fast Level"},
        {"learning_rate": -0.1},
        {"prox": -1},
        {"scope": "planet"},
        {"perid": 2},
    ],
)
def test_level_refuses_bad_values(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Level.model_validate({"name": "fast", "params": ["*"], "scope": "global"} | change)


def test_fingerprint_tells_specs_apart(spec: NestedSpec) -> None:
    same = NestedSpec.of([Level.model_validate(level.model_dump(mode="json")) for level in spec.levels])
    other = NestedSpec.of([*spec.levels[:-1], spec.levels[-1].model_copy(update={"period": 8})])
    assert same.fingerprint == spec.fingerprint != other.fingerprint


def test_unknown_level_is_not_found(spec: NestedSpec) -> None:
    assert spec.level("fleet").period == 4
    with pytest.raises(NotFoundError, match="personal, regional, fleet"):
        spec.level("flee")


def test_advice_names_a_slower_level_that_fewer_share(spec: NestedSpec) -> None:
    assert spec.advice() == ()
    odd = NestedSpec.of([level("fast", "a"), level("slow", "b", period=2, scope=Scope.PRIVATE)])
    assert len(odd.advice()) == 1
