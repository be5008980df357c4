from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nfl_core import durable
from nfl_core.errors import ContentError, NotFoundError, StorageFullError
from nfl_ota import (
    NoBootableSlotError,
    QuarantinedError,
    Slot,
    SlotBusyError,
    SlotMachine,
    SlotRecord,
    Slots,
    SlotState,
    pack_image,
)


@pytest.fixture
def slots(tmp_path):
    return Slots(tmp_path / "slots")


def install(slots, bundle, *, confirm=True):
    slots.install(bundle)
    slots.activate()
    if confirm:
        slots.confirm()


def damage(tmp_path, slot):
    path = tmp_path / "slots" / f"slot-{slot}"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_versions_take_turns_in_the_slots(slots, worlds):
    for version, expected in ((1, Slot.A), (2, Slot.B), (3, Slot.A)):
        assert slots.install(worlds.opened(version)) is expected
        slots.activate()
        slots.confirm()
        boot = slots.boot()
        assert (boot.slot, boot.bundle.manifest.version, boot.on_probation, boot.fell_back) == (
            expected,
            version,
            False,
            False,
        )


def test_an_empty_device_boots_nothing(slots):
    with pytest.raises(NoBootableSlotError):
        slots.boot()
    with pytest.raises(NotFoundError):
        slots.load()


def test_a_staged_version_does_not_run_before_it_is_activated(slots, worlds):
    install(slots, worlds.opened(1))
    slots.install(worlds.opened(2))
    assert slots.boot().bundle.manifest.version == 1
    slots.activate()
    assert slots.boot().bundle.manifest.version == 2


def test_fall_back_goes_to_the_version_before_and_quarantines(slots, worlds):
    install(slots, worlds.opened(1))
    install(slots, worlds.opened(2), confirm=False)
    boot = slots.fall_back()
    assert (boot.bundle.manifest.version, boot.fell_back, boot.on_probation) == (1, True, False)
    with pytest.raises(QuarantinedError):
        slots.install(worlds.opened(2))
    install(slots, worlds.opened(3))
    assert slots.boot().bundle.manifest.version == 3


def test_a_confirmed_version_can_still_fall_back_once(slots, worlds):
    install(slots, worlds.opened(1))
    install(slots, worlds.opened(2))
    assert slots.fall_back().bundle.manifest.version == 1
    with pytest.raises(NoBootableSlotError):
        slots.fall_back()


def test_a_version_that_never_confirms_falls_back_after_its_tries(slots, worlds):
    install(slots, worlds.opened(1))
    install(slots, worlds.opened(2), confirm=False)
    assert [slots.boot().bundle.manifest.version for _ in range(3)] == [2, 2, 2]
    boot = slots.boot()
    assert (boot.bundle.manifest.version, boot.fell_back) == (1, True)
    assert slots.state.quarantined == (2,)


def test_nothing_is_installed_over_the_slot_to_fall_back_to(slots, worlds):
    install(slots, worlds.opened(1))
    install(slots, worlds.opened(2), confirm=False)
    with pytest.raises(SlotBusyError):
        slots.install(worlds.opened(3))
    assert slots.load(Slot.A).manifest.version == 1


def test_a_damaged_active_slot_is_noticed_at_boot(slots, worlds, tmp_path):
    install(slots, worlds.opened(1))
    install(slots, worlds.opened(2))
    damage(tmp_path, "b")
    with pytest.raises(ContentError):
        slots.load()
    boot = slots.boot()
    assert (boot.bundle.manifest.version, boot.fell_back) == (1, True)


def test_a_damaged_staged_slot_is_not_activated(slots, worlds, tmp_path):
    install(slots, worlds.opened(1))
    slots.install(worlds.opened(2))
    damage(tmp_path, "b")
    before = slots.state
    with pytest.raises(ContentError):
        slots.activate()
    assert slots.state == before
    slots.install(worlds.opened(2))
    slots.activate()
    assert slots.boot().bundle.manifest.version == 2


def test_the_factory_image_runs_when_both_slots_are_damaged(slots, worlds, tmp_path):
    slots.provision_factory(worlds.opened(1))
    assert slots.boot().slot is Slot.FACTORY
    install(slots, worlds.opened(2))
    install(slots, worlds.opened(3))
    damage(tmp_path, "a")
    damage(tmp_path, "b")
    boot = slots.boot()
    assert (boot.slot, boot.bundle.manifest.version, boot.fell_back) == (Slot.FACTORY, 1, True)
    install(slots, worlds.opened(4))
    assert slots.boot().bundle.manifest.version == 4


def test_the_factory_image_runs_when_the_state_is_lost(slots, worlds, tmp_path):
    slots.provision_factory(worlds.opened(1))
    install(slots, worlds.opened(2))
    for path in (tmp_path / "slots").glob("state.*"):
        path.write_bytes(b"")
    assert slots.boot().slot is Slot.FACTORY


def test_the_factory_image_is_written_once(slots, worlds, tmp_path):
    slots.provision_factory(worlds.opened(1))
    slots.provision_factory(worlds.opened(1))
    with pytest.raises(SlotBusyError, match="version 1 already"):
        slots.provision_factory(worlds.opened(2))
    damage(tmp_path, "factory")
    slots.provision_factory(worlds.opened(1))
    assert slots.load(Slot.FACTORY).manifest.version == 1


def test_a_staged_version_is_the_last_resort(slots, worlds, tmp_path):
    install(slots, worlds.opened(1))
    slots.install(worlds.opened(2))
    damage(tmp_path, "a")
    boot = slots.boot()
    assert (boot.bundle.manifest.version, boot.on_probation) == (2, True)


def test_manifests_are_of_what_is_whole(slots, worlds, tmp_path):
    assert slots.manifests() == ()
    slots.provision_factory(worlds.opened(1))
    install(slots, worlds.opened(2))
    slots.install(worlds.opened(3))
    assert sorted(manifest.version for manifest in slots.manifests()) == [1, 2, 3]
    damage(tmp_path, "a")
    assert sorted(manifest.version for manifest in slots.manifests()) == [1, 3]


def test_nothing_whole_boots_nothing(slots, worlds, tmp_path):
    install(slots, worlds.opened(1))
    damage(tmp_path, "a")
    with pytest.raises(NoBootableSlotError):
        slots.boot()


def test_steps_out_of_order_are_refused(slots, worlds):
    with pytest.raises(SlotBusyError):
        slots.activate()
    with pytest.raises(SlotBusyError):
        slots.confirm()
    install(slots, worlds.opened(1))
    with pytest.raises(SlotBusyError):
        slots.activate()


def test_repeating_a_step_changes_nothing(slots, worlds, tmp_path):
    install(slots, worlds.opened(1))
    slots.install(worlds.opened(2))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "slots").iterdir()}
    slots.install(worlds.opened(2))
    slots.confirm()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "slots").iterdir()} == files


@pytest.mark.parametrize("room", range(0, 3000, 250))
def test_a_full_disk_leaves_the_slots_as_they_were(slots, worlds, tmp_path, monkeypatch, room):
    """The disk fills up after `room` more bytes, wherever that is within the installation."""
    install(slots, worlds.opened(1))
    before = slots.state
    left = [room]
    write = durable.LOCAL_DISK._write

    def limited(path, data, flags, mode):
        part = data[: left[0]]
        left[0] -= len(part)
        write(path, part, flags, mode)
        if len(part) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.LOCAL_DISK, "_write", limited)
        with pytest.raises(StorageFullError):
            install(slots, worlds.opened(2), confirm=False)
    if room < len(pack_image(worlds.opened(2))):
        assert slots.state == before
    assert slots.state.active is before.active
    assert slots.boot().bundle.manifest.version == 1
    install(slots, worlds.opened(2))
    assert slots.boot().bundle.manifest.version == 2


def fill(path):
    """Write until nothing fits any more."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


@pytest.mark.root
def test_a_full_file_system_leaves_the_slots_as_they_were(tmp_path, worlds):
    """The same on a real file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system is not permitted here")
    try:
        slots = Slots(place / "slots")
        install(slots, worlds.opened(1))
        before = slots.state
        fill(place / "filler")
        with pytest.raises(StorageFullError):
            slots.install(worlds.opened(2))
        assert slots.state == before
        assert slots.boot().bundle.manifest.version == 1
        (place / "filler").unlink()
        install(slots, worlds.opened(2))
        assert slots.boot().bundle.manifest.version == 2
    finally:
        subprocess.run([shutil.which("umount"), place], check=True)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: what runs is whole, and the slot to fall back to is never written."""

    def __init__(self):
        super().__init__()
        self.machine = SlotMachine(max_tries=2)
        self.state = SlotState()
        self.whole = {Slot.FACTORY}
        self.version = 0

    @rule()
    def stage(self):
        self.version += 1
        try:
            slot = self.machine.target(self.state, self.version)
        except SlotBusyError:
            assert self.state.on_probation
            return
        assert slot not in (self.state.active, Slot.FACTORY)
        self.state = self.machine.staged(
            self.state, slot, SlotRecord(version=self.version, content_digest="c", sha256="s")
        )
        self.whole |= {slot}

    @precondition(lambda self: self.state.pending is not None and self.state.pending in self.whole)
    @rule()
    def activate(self):
        self.state = self.machine.activated(self.state)
        assert self.state.on_probation

    @precondition(lambda self: self.state.active is not None)
    @rule()
    def confirm(self):
        self.state = self.machine.confirmed(self.state)

    @precondition(lambda self: self.state.active is not None)
    @rule()
    def fail(self):
        self.state = self.machine.failed(self.state, self.whole)

    @rule()
    def boot(self):
        self.state = self.machine.booted(self.state, self.whole)
        assert self.state.active in self.whole
        assert self.state.tries <= 2

    @rule(slot=st.sampled_from([Slot.A, Slot.B]))
    def rot(self, slot):
        self.whole -= {slot}

    @invariant()
    def makes_sense(self):
        assert self.state.active is None or self.state.active is not self.state.previous
        assert self.state.pending is None or self.state.pending is not self.state.active
        record = self.state.record(self.state.pending)
        assert record is None or record.version not in self.state.quarantined


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
