from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import DurableError, RollbackError
from nfl_ota import Floor, FloorState, Mark

NAMES = ("root", "timestamp", "snapshot", "targets", "bundle")
marks = st.builds(Mark, number=st.integers(0, 5), keys=st.sampled_from(["a", "b"]))
states = st.builds(
    FloorState,
    root=st.builds(Mark, number=st.integers(0, 5)),
    timestamp=marks,
    snapshot=marks,
    targets=marks,
    bundle=marks,
)


@pytest.mark.parametrize("name", NAMES)
def test_a_lower_number_is_refused_under_the_same_keys(tmp_path, name):
    floor = Floor(tmp_path / "floor")
    floor.raise_to(FloorState(**{name: Mark(number=3, keys="k")}))
    floor.check(FloorState(**{name: Mark(number=3, keys="k")}))
    with pytest.raises(RollbackError, match=f"{name} has number 2"):
        floor.check(FloorState(**{name: Mark(number=2, keys="k")}))
    with pytest.raises(RollbackError):
        floor.raise_to(FloorState(**{name: Mark(number=2, keys="k")}))
    assert Floor(tmp_path / "floor").state.mark(name).number == 3


def test_new_keys_lift_the_mark_of_their_role_alone(tmp_path):
    floor = Floor(tmp_path / "floor")
    floor.raise_to(FloorState(timestamp=Mark(number=9, keys="old"), snapshot=Mark(number=9, keys="s")))
    floor.raise_to(FloorState(timestamp=Mark(number=1, keys="new")))
    with pytest.raises(RollbackError):
        floor.check(FloorState(snapshot=Mark(number=1, keys="s")))


def test_the_floor_is_on_disk_when_raise_to_returns(tmp_path):
    Floor(tmp_path / "floor").raise_to(FloorState(bundle=Mark(number=4)))
    assert Floor(tmp_path / "floor").state.bundle.number == 4


def test_one_damaged_copy_is_survived_and_two_are_not(tmp_path):
    floor = Floor(tmp_path / "floor")
    floor.raise_to(FloorState(bundle=Mark(number=4)))
    floor.raise_to(FloorState(bundle=Mark(number=5)))
    (tmp_path / "floor.1").write_bytes(b"")  # the second store
    assert Floor(tmp_path / "floor").state.bundle.number == 4
    for place in (0, 1):
        (tmp_path / f"floor.{place}").write_bytes(b"")
    with pytest.raises(DurableError):
        Floor(tmp_path / "floor")


def test_a_floor_of_another_form_is_refused(tmp_path):
    from nfl_core.durable import DualRecord

    DualRecord(tmp_path / "floor").store(b'{"bundle":{"number":"many"}}')
    with pytest.raises(DurableError, match="understood"):
        Floor(tmp_path / "floor")


def test_now_is_the_later_of_clock_and_last_refresh(tmp_path, worlds):
    floor = Floor(tmp_path / "floor")
    assert floor.now(worlds.START) == worlds.START
    floor.raise_to(FloorState(seen_at=worlds.START))
    assert floor.now(worlds.START - timedelta(days=9)) == worlds.START
    assert floor.now(worlds.START + timedelta(days=9)) == worlds.START + timedelta(days=9)
    floor.raise_to(FloorState(seen_at=worlds.START - timedelta(days=1)))
    assert floor.state.seen_at == worlds.START


@given(floor=states, seen=states)
def test_what_was_accepted_is_never_below_the_floor_it_made(floor, seen):
    if floor.refuses(seen) is None:
        raised = floor.raised(seen)
        assert raised.refuses(seen) is None
        assert raised.root.number >= floor.root.number
        for name in NAMES:
            have, new = floor.mark(name), raised.mark(name)
            assert new.number >= have.number or new.keys != have.keys
