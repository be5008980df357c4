from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nfl_core.codec import frame
from nfl_core.codec.quantise import pack
from nfl_core.durable import DualRecord
from nfl_core.durable.simulated import PowerCutError, SimulatedDisk
from nfl_core.errors import (
    DeltaError,
    DurableError,
    EgressError,
    ExpiredError,
    IdentityError,
    PolicyError,
    StorageFullError,
)
from nfl_core.wire import device_pb2
from nfl_secure.egress import EgressGate
from nfl_secure.secagg import open_contribution

from .fleet import BASE, LEAF, OTHER_BASE, SCHEMA, Fleet

Displacement = Mapping[str, NDArray[np.float32]]


def find_markers(sent: bytes, tensors: Displacement) -> list[str]:
    """Return the tensors of which something is found in what was sent: the check of leak tests and control."""
    found = []
    for name, tensor in tensors.items():
        forms = [tensor.astype(kind).tobytes() for kind in ("<f4", ">f4", "<f8", "<f2", ">f2")]
        # any two neighbouring values count: a leak need not copy the whole tensor
        values = tensor.reshape(-1)
        forms += [values[i : i + 2].astype("<f4").tobytes() for i in range(values.size - 1)]
        if any(form in sent or form.hex().encode() in sent for form in forms) or name.encode() in sent:
            found.append(name)
    return found


def test_what_leaves_has_the_same_size_whatever_was_learned(fleet: Fleet) -> None:
    sizes = set()
    for number, size in enumerate((0.0, 1e-6, 0.05, 1e6), start=1):
        policy = fleet.open_policy(number)
        moved = {t.name: np.full(t.shape, size, np.float32) for t in SCHEMA.shared}
        sizes.add(fleet.gate("a", policy).seal(moved, base=BASE, weight=1 + number % 2, leaf=LEAF).num_bytes)
    assert len(sizes) == 1


def test_no_private_value_and_no_shared_value_in_clear_leaves(fleet: Fleet) -> None:
    displacement = fleet.displacement()
    sealed = fleet.gate("a", fleet.open_policy()).seal(displacement, base=BASE, weight=1, leaf=LEAF)
    secret = {t.name: fleet.rng.standard_normal(t.shape).astype(np.float32) for t in SCHEMA.private}
    assert find_markers(sealed.frame, {**displacement, **secret}) == []


@pytest.mark.parametrize("form", ["raw", "half", "hex", "named", "two-values"])
def test_positive_control_a_leaking_egress_is_caught_by_the_same_check(fleet: Fleet, form: str) -> None:
    """A gate that appends a private tensor to what it sends: the check above must see it, or it proves nothing."""
    secret = {"private.w": fleet.rng.standard_normal((2, 2)).astype(np.float32)}
    leaks = {
        "raw": secret["private.w"].tobytes(),
        "half": secret["private.w"].astype(np.float16).tobytes(),
        "hex": secret["private.w"].tobytes().hex().encode(),
        "named": b"private.w",
        "two-values": secret["private.w"].reshape(-1)[1:3].tobytes(),
    }
    sealed = fleet.gate("a", fleet.open_policy()).seal(fleet.displacement(), base=BASE, weight=1, leaf=LEAF)
    assert find_markers(sealed.frame, secret) == []
    assert find_markers(sealed.frame + leaks[form], secret) == ["private.w"]


def test_private_tensors_do_not_change_what_leaves(fleet: Fleet) -> None:
    """The gate sees shared tensors alone, and refuses to be handed another one."""
    gate = fleet.gate("a", fleet.open_policy())
    for name in ("private.w", "unknown.w"):
        with pytest.raises(DeltaError, match=name.split(".")[0]):
            gate.seal({**fleet.displacement(), name: np.zeros((2, 2), np.float32)}, base=BASE, weight=1, leaf=LEAF)
    assert gate.stored is None


def _bad(**changes: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    good: dict[str, NDArray[np.generic]] = {t.name: np.zeros(t.shape, np.float32) for t in SCHEMA.shared}
    return {**good, **{name.replace("_", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    "displacement",
    [
        {},
        {"body.w": np.zeros((4, 3), np.float32)},
        _bad(middle_w=np.zeros(6, np.float32)),
        _bad(middle_w=np.zeros((5, 1), np.float32)),
        _bad(middle_w=np.zeros(5, np.float64)),
        _bad(middle_w=np.array([0, 0, np.nan, 0, 0], np.float32)),
        _bad(middle_w=np.array([0, 0, -np.inf, 0, 0], np.float32)),
    ],
)
def test_missing_misshaped_and_non_finite_tensors_are_refused_and_nothing_is_stored(
    fleet: Fleet, displacement: Displacement
) -> None:
    gate = fleet.gate("a", fleet.open_policy())
    with pytest.raises(DeltaError):
        gate.seal(displacement, base=BASE, weight=1, leaf=LEAF)
    assert fleet.gate("a", fleet.open_policy(2)).stored is None


def test_arguments_out_of_the_policy_are_refused(fleet: Fleet) -> None:
    gate, moved = fleet.gate("a", fleet.open_policy()), fleet.displacement()
    for weight in (0, -1, 3):
        with pytest.raises(EgressError, match="weight"):
            gate.seal(moved, base=BASE, weight=weight, leaf=LEAF)
    with pytest.raises(PolicyError, match="base"):
        gate.seal(moved, base="0" * 64, weight=1, leaf=LEAF)
    with pytest.raises(IdentityError, match="leaf"):
        gate.seal(moved, base=BASE, weight=1, leaf="leaf|1")
    assert gate.stored is None


def test_expired_policy_seals_nothing_but_still_gives_what_was_sealed(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    sealed = fleet.seal("a", policy)
    fleet.clock.advance(hours=1)
    with pytest.raises(ExpiredError):
        fleet.seal("b", policy)
    assert fleet.gate("a", policy).stored == sealed


def test_gates_are_for_devices_and_their_own_model(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    with pytest.raises(EgressError, match="no device"):
        EgressGate(SCHEMA, principal=fleet.leaf, policy=policy, state=fleet.home / "x/egress")
    other = type(SCHEMA)(SCHEMA.tensors[:1])
    with pytest.raises(EgressError, match="another schema"):
        EgressGate(other, principal=fleet.device("a"), policy=policy, state=fleet.home / "x/egress")


def test_a_second_seal_gives_the_first_ones_bytes(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    first = fleet.seal("a", policy)
    again = fleet.gate("a", policy)
    assert again.seal(fleet.displacement(), base=OTHER_BASE, weight=2, leaf="leaf-2") == first
    assert again.stored == first
    assert len(fleet.witness.seen) == 1


def test_contribution_ids_differ_by_device_policy_and_base(fleet: Fleet) -> None:
    a, b = fleet.device("a"), fleet.device("b")
    ids = {d.contribution_id(policy_id=p, base=base) for d in (a, b) for p in (1, 2) for base in (BASE, OTHER_BASE)}
    assert len(ids) == 8


def test_replayed_old_policy_is_refused(fleet: Fleet) -> None:
    old, new = fleet.open_policy(1), fleet.open_policy(2)
    fleet.seal("a", new)
    with pytest.raises(PolicyError, match="older"):
        fleet.seal("a", old)


def test_equivocating_root_two_texts_of_one_policy_get_one_contribution(fleet: Fleet) -> None:
    first = fleet.open_policy(1)
    fleet.seal("a", first)
    second = fleet.verify(fleet.signed_policy(1, window_ms=7000))
    with pytest.raises(PolicyError, match="two texts"):
        fleet.seal("a", second)


def test_error_feedback_carries_what_was_not_sent_to_the_next_policy(fleet: Fleet) -> None:
    """0.03 a round in steps of 0.1: after ten rounds three steps have left, not none and not ten."""
    moved = {t.name: np.full(t.shape, 0.03, np.float32) for t in SCHEMA.shared}
    total_P = np.zeros(SCHEMA.num_shared, np.int64)
    for number in range(1, 11):
        sealed = fleet.gate("a", fleet.open_policy(number)).seal(moved, base=BASE, weight=1, leaf=LEAF)
        total_P += fleet.witness.seen[sealed.contribution_id][0]
    np.testing.assert_array_equal(total_P, 3)


def test_one_wild_update_does_not_echo(fleet: Fleet) -> None:
    wild = {t.name: np.full(t.shape, 1e30, np.float32) for t in SCHEMA.shared}
    still = {t.name: np.zeros(t.shape, np.float32) for t in SCHEMA.shared}
    counts = []
    for number, moved in enumerate((wild, still, still), start=1):
        sealed = fleet.gate("a", fleet.open_policy(number)).seal(moved, base=BASE, weight=1, leaf=LEAF)
        counts.append(fleet.witness.seen[sealed.contribution_id][0].max())
    assert counts == [1, 0, 0]


def test_a_damaged_state_is_refused_not_forgotten(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    fleet.seal("a", policy)
    state = fleet.home / "device-state/a/egress"
    for cut in (b"", b"NFG1", DualRecord(state).load()[:-1]):
        DualRecord(state).store(cut)
        with pytest.raises(DurableError):
            fleet.gate("a", policy)


def _gate_on(fleet: Fleet, disk: SimulatedDisk, policy_id: int) -> EgressGate:
    (fleet.home / "sim").mkdir(exist_ok=True)
    return EgressGate(
        SCHEMA,
        principal=fleet.device("a"),
        policy=fleet.policies[policy_id],
        state=fleet.home / "sim/egress",
        clock=fleet.clock,
        disk=disk,
        tap=fleet.witness,
    )


def test_power_cut_at_every_operation_neither_sends_twice_nor_counts_twice(fleet: Fleet) -> None:
    """At most one frame ever leaves under a policy, and steps sent plus residual are what was learned."""
    fleet.policies = {n: fleet.open_policy(n) for n in (1, 2)}
    rng = random.Random(5)
    moved = {t.name: np.full(t.shape, 0.06, np.float32) for t in SCHEMA.shared}
    start = SimulatedDisk()
    first = _gate_on(fleet, start, 1).seal(moved, base=BASE, weight=1, leaf=LEAF)
    probe = start.after_power_cut(rng)
    _gate_on(fleet, probe, 2).seal(moved, base=BASE, weight=1, leaf=LEAF)
    assert probe.num_operations > 3
    for power_lasts in range(probe.num_operations):
        for _ in range(5):
            disk = start.after_power_cut(rng)
            disk.power_lasts = power_lasts
            returned = None
            with pytest.raises(PowerCutError):
                returned = _gate_on(fleet, disk, 2).seal(moved, base=BASE, weight=1, leaf=LEAF)
            assert returned is None
            after = disk.after_power_cut(rng)
            gate = _gate_on(fleet, after, 2)
            stored = gate.stored
            sealed = gate.seal(moved, base=BASE, weight=1, leaf=LEAF)
            assert stored in (None, sealed)
            assert _gate_on(fleet, after.after_power_cut(rng), 2).stored == sealed
            # round 1 sent one step of 0.1 for 0.06 and kept -0.04; round 2 wants 0.02 and sends nothing
            assert fleet.witness.seen[first.contribution_id][0].max() == 1
            assert fleet.witness.seen[sealed.contribution_id][0].max() == 0


def test_whatever_can_leave_after_a_crash_was_witnessed_before(fleet: Fleet) -> None:
    policy = fleet.open_policy()

    def dying_witness(contribution_id: str, *, counts_P: NDArray[np.int64], weight: int) -> None:
        raise PowerCutError

    gate = EgressGate(
        SCHEMA,
        principal=fleet.device("a"),
        policy=policy,
        state=fleet.home / "device-state/a/egress",
        clock=fleet.clock,
        tap=dying_witness,
    )
    with pytest.raises(PowerCutError):
        gate.seal(fleet.displacement(), base=BASE, weight=1, leaf=LEAF)
    assert fleet.gate("a", policy).stored is None
    assert fleet.seal("a", policy).contribution_id in fleet.witness.seen


def test_a_full_disk_lets_nothing_leave(fleet: Fleet) -> None:
    import errno

    class FullDisk(SimulatedDisk):
        def write(self, path: Path, data: bytes, *, mode: int) -> None:
            raise OSError(errno.ENOSPC, "no space left")

    fleet.policies = {1: fleet.open_policy(1)}
    gate = _gate_on(fleet, FullDisk(), 1)
    with pytest.raises(StorageFullError):
        gate.seal(fleet.displacement(), base=BASE, weight=1, leaf=LEAF)
    assert gate.stored is None


def _body(fleet: Fleet, sealed_frame: bytes, **changes: object) -> bytes:
    message = device_pb2.Contribution.FromString(frame.decode(sealed_frame, max_bytes=10**6)[1])
    for name, value in changes.items():
        setattr(message, name, value)
    return frame.encode(frame.FrameKind.CONTRIBUTION, message.SerializeToString())


def test_masked_values_are_not_the_counts(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    sealed = fleet.seal("a", policy)
    opened = open_contribution(sealed.frame, policy=policy, leaf=LEAF, ca_pem=fleet.ca_pem, at=fleet.clock())
    counts_P, weight = fleet.witness.seen[sealed.contribution_id]
    plain_N = (np.append(counts_P, weight) % 2**policy.modulus_bits).astype(np.uint32)
    assert pack(plain_N, policy.modulus_bits) not in sealed.frame
    assert np.count_nonzero(opened.masked_N == plain_N) < opened.masked_N.size / 2
