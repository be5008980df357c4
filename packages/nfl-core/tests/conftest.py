"""What the tests of nfl-core share: one small spec and its schema."""

from __future__ import annotations

import pytest

from nfl_core.levels import Level, NestedSpec, Scope
from nfl_core.schema import TensorSchema

SHAPES = {
    "body.w": (3, 4),
    "body.b": (4,),
    "middle.w": (4, 2),
    "head.w": (2, 5),
    "private.w": (2, 5),
    "private.b": (),
}


@pytest.fixture(scope="session")
def spec() -> NestedSpec:
    return NestedSpec.of(
        [
            Level(name="personal", params=("private.*",), scope=Scope.PRIVATE),
            Level(name="regional", params=("middle.*",), period=2, scope=Scope.REGION),
            Level(name="fleet", params=("body.*", "head.*"), period=4, scope=Scope.GLOBAL),
        ]
    )


@pytest.fixture(scope="session")
def schema(spec: NestedSpec) -> TensorSchema:
    return TensorSchema.of(SHAPES, spec)
