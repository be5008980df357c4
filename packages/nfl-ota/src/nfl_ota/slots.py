"""Two slots and a factory image: which one a device runs, decided apart from the disk that holds them.

`SlotMachine` is pure: a state and an event make the next state. `Slots` carries its decisions out. Rules:

* a slot is one file that holds a whole bundle; its SHA-256 stands in the state and is checked every time it is loaded;
* the running slot and the one to fall back to are never written; a new bundle goes where neither is;
* a new slot is tried: every boot before `confirm` counts, and after `max_tries` the device falls back by itself;
* a version that failed is quarantined: the same number is never installed again;
* when both slots fail, the factory image runs; it is written once and has its own record, so that it boots even when
  the state of the slots is lost;
* the order is file, then state: a power cut leaves the old state with the old file, or a file that nothing points to.

    >>> slots = Slots(Path("slots"))
    >>> slots.install(bundle)
    <Slot.A: 'a'>
    >>> slots.activate()
    >>> slots.boot().slot, slots.confirm()
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nfl_core.durable import LOCAL_DISK, Disk, DualRecord, make_folder, write_file
from nfl_core.errors import ContentError, DurableError, NflError, NotFoundError
from nfl_core.ids import Digest, VersionId, canonical_json, digest_of
from nfl_ota.bundle import Bundle, BundleManifest
from nfl_ota.errors import NoBootableSlotError, QuarantinedError, SlotBusyError
from nfl_ota.image import pack_image, unpack_image

_LOG = logging.getLogger(__name__)
MAX_QUARANTINED = 64  # versions; old ones are below the anti-rollback floor long before they are forgotten here


class Slot(str, Enum):
    """Where a bundle can stand on a device."""

    A = "a"
    B = "b"
    FACTORY = "factory"


class SlotRecord(BaseModel):
    """What a slot holds.

    Attributes:
        version: Of the bundle.
        content_digest: Of its shared tensors.
        sha256: Of the slot's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int
    content_digest: str
    sha256: str


class SlotState(BaseModel):
    """All that must survive a power cut.

    Attributes:
        a: What slot A holds, None when nothing is known to be there.
        b: Likewise.
        active: Slot that runs, None before the first activation.
        previous: Slot to fall back to.
        pending: Slot that was staged and is not active yet.
        tries: Boots of the active slot since it was activated and not confirmed.
        confirmed: Whether the active slot passed its probation.
        quarantined: Versions that failed on this device, oldest first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    a: SlotRecord | None = None
    b: SlotRecord | None = None
    active: Slot | None = None
    previous: Slot | None = None
    pending: Slot | None = None
    tries: int = Field(default=0, ge=0)
    confirmed: bool = False
    quarantined: tuple[int, ...] = ()

    def record(self, slot: Slot | None) -> SlotRecord | None:
        """Return what slot A or B holds."""
        return {Slot.A: self.a, Slot.B: self.b}.get(slot) if slot is not None else None

    @property
    def on_probation(self) -> bool:
        """Whether the active slot was activated and neither confirmed nor failed."""
        return self.active is not None and not self.confirmed


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotMachine:
    """The rules, without a disk.

    Attributes:
        max_tries: Boots of a new slot before the device falls back, >= 1.
    """

    max_tries: int = 3

    def target(self, state: SlotState, version: VersionId) -> Slot:
        """Decide where a new bundle goes.

        Raises:
            SlotBusyError: The active slot is on probation: the other one is needed to fall back to.
            QuarantinedError: That version failed here before.
        """
        if version in state.quarantined:
            raise QuarantinedError(f"version {version} failed on this device before")
        if state.on_probation:
            raise SlotBusyError(f"slot {_name(state.active)} is on probation, version {version} has no place")
        return Slot.B if state.active is Slot.A else Slot.A

    def staged(self, state: SlotState, slot: Slot, record: SlotRecord) -> SlotState:
        """A whole bundle stands in `slot`, which `target` named."""
        previous = None if state.previous is slot else state.previous
        changes = {"a": record} if slot is Slot.A else {"b": record}
        return state.model_copy(update={**changes, "pending": slot, "previous": previous})

    def activated(self, state: SlotState) -> SlotState:
        """The staged slot runs from now on, on probation.

        Raises:
            SlotBusyError: Nothing is staged.
        """
        if state.pending is None:
            raise SlotBusyError("no slot is staged, so none can be activated", hint="install a bundle first")
        update = {"active": state.pending, "previous": state.active, "pending": None, "tries": 0, "confirmed": False}
        return state.model_copy(update=update)

    def confirmed(self, state: SlotState) -> SlotState:
        """The active slot passed its probation.

        Raises:
            SlotBusyError: There is no active slot.
        """
        if state.active is None:
            raise SlotBusyError(
                "no slot is active, so none can be confirmed", hint="install and activate a bundle first"
            )
        return state.model_copy(update={"confirmed": True, "tries": 0})

    def failed(self, state: SlotState, whole: Collection[Slot]) -> SlotState:
        """The active slot failed: fall back to the previous one if it is whole, else to the factory image.

        Args:
            state: Now.
            whole: Slots whose files have the hash that they should have.

        Raises:
            NoBootableSlotError: Nothing is left to fall back to.
        """
        record = state.record(state.active)
        quarantined = state.quarantined
        if record is not None and record.version not in quarantined:
            quarantined = (*quarantined, record.version)[-MAX_QUARANTINED:]
        # Last of all what was staged and not tried yet: better on probation than no model at all.
        order = (state.previous, Slot.FACTORY, state.pending if state.active is not None else None)
        fallback = next((slot for slot in order if slot is not None and slot in whole), None)
        if fallback is None:
            raise NoBootableSlotError(f"slot {_name(state.active)} failed and there is no whole slot to fall back to")
        update = {
            "active": fallback,
            "previous": None,
            "pending": None,
            "tries": 0,
            "confirmed": fallback is not state.pending,
            "quarantined": quarantined,
        }
        return state.model_copy(update=update)

    def booted(self, state: SlotState, whole: Collection[Slot]) -> SlotState:
        """The device starts: decide what runs, and count the try if it is on probation.

        Raises:
            NoBootableSlotError: No slot is whole.
        """
        if state.active is None and Slot.FACTORY in whole:
            return state.model_copy(update={"active": Slot.FACTORY, "confirmed": True})
        if state.active is None or state.active not in whole:
            return self.failed(state, whole)
        if state.confirmed:
            return state
        if state.tries >= self.max_tries:
            return self.failed(state, whole)
        return state.model_copy(update={"tries": state.tries + 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a device starts with.

    Attributes:
        slot: Where it stands.
        bundle: The bundle, verified.
        on_probation: Whether it still has to be confirmed.
        fell_back: Whether the slot that was active before this boot was given up in it.
    """

    slot: Slot
    bundle: Bundle
    on_probation: bool
    fell_back: bool


class Slots:
    """The slots of one device on disk.

    Args:
        folder: Holds `slot-a`, `slot-b`, `slot-factory` and the records; made when it is missing.
        machine: The rules.
        disk: Where the folder is.

    Raises:
        StorageFullError: The disk is full.
        DurableError: The folder cannot be made.
    """

    def __init__(self, folder: Path, *, machine: SlotMachine | None = None, disk: Disk = LOCAL_DISK) -> None:
        if disk is LOCAL_DISK:
            make_folder(folder)
        self._folder = folder
        self._disk = disk
        self._machine = machine or SlotMachine()
        self._record = DualRecord(folder / "state", disk=disk)
        self._factory_record = DualRecord(folder / "factory", disk=disk)

    @property
    def state(self) -> SlotState:
        """The state as it is on disk.

        Raises:
            DurableError: It cannot be read.
        """
        return _parse(self._record.load()) or SlotState()

    @property
    def factory(self) -> SlotRecord | None:
        """What the factory slot holds, None when none was provisioned.

        Raises:
            DurableError: The record cannot be read.
        """
        payload = self._factory_record.load()
        try:
            return None if payload is None else SlotRecord.model_validate_json(payload)
        except ValidationError as error:
            raise DurableError(f"the record of the factory image in {self._folder} cannot be understood") from error

    def record(self, slot: Slot) -> SlotRecord | None:
        """Return what a slot should hold.

        Raises:
            DurableError: The state cannot be read.
        """
        return self.factory if slot is Slot.FACTORY else self.state.record(slot)

    def provision_factory(self, bundle: Bundle) -> None:
        """Write the factory image; once, before the device goes out. Writing the same image again changes nothing.

        Raises:
            SlotBusyError: There is another factory image already.
            StorageFullError: The disk is full; nothing was changed.
            DurableError: The image cannot be written.
        """
        image = pack_image(bundle)
        record = _record_of(bundle, image)
        present = self.factory
        if present is not None and present != record:
            raise SlotBusyError(
                f"the factory image is version {present.version} already", hint="a factory image is written once"
            )
        if present is None or not self._is_whole(Slot.FACTORY, present):
            write_file(self._path(Slot.FACTORY), image, disk=self._disk)
        if present is None:
            self._factory_record.store(canonical_json(record.model_dump(mode="json")))

    def install(self, bundle: Bundle) -> Slot:
        """Write a verified bundle into the free slot and stage it; the running slot is not touched.

        Installing the bundle that is staged already changes nothing.

        Raises:
            SlotBusyError: The active slot is on probation.
            QuarantinedError: That version failed on this device before.
            StorageFullError: The disk is full; the state of the slots was not changed.
            DurableError: The slot cannot be written or does not read back; the state was not changed.
        """
        state = self.state
        slot = self._machine.target(state, VersionId(bundle.manifest.version))
        image = pack_image(bundle)
        record = _record_of(bundle, image)
        if state.pending is slot and state.record(slot) == record and self._is_whole(slot, record):
            return slot
        write_file(self._path(slot), image, disk=self._disk)
        if not self._is_whole(slot, record):
            raise DurableError(
                f"slot {slot.value} does not read back what was written", hint="the disk is failing; replace it"
            )
        self._store(self._machine.staged(state, slot, record))
        return slot

    def activate(self) -> None:
        """Make the staged slot the active one, on probation. It is loaded by `boot` or `load`.

        Raises:
            SlotBusyError: Nothing is staged.
            ContentError: The staged file was damaged since it was written; the state was not changed.
            StorageFullError: The disk is full; the state was not changed.
            DurableError: The state cannot be read or written.
        """
        state = self.state
        record = state.record(state.pending)
        if state.pending is not None and (record is None or not self._is_whole(state.pending, record)):
            raise ContentError(f"the staged slot {state.pending.value} was damaged", hint="install the bundle again")
        self._store(self._machine.activated(state))

    def confirm(self) -> None:
        """Keep the active slot for good.

        Raises:
            SlotBusyError: There is no active slot.
            StorageFullError: The disk is full; the slot stays on probation.
            DurableError: The state cannot be read or written.
        """
        state = self.state
        if state.on_probation or state.active is None:
            self._store(self._machine.confirmed(state))

    def fall_back(self) -> Boot:
        """Give up the active slot, quarantine its version, and load what the device runs instead.

        Raises:
            NoBootableSlotError: Nothing whole is left.
            StorageFullError: The disk is full; the state was not changed.
            DurableError: The state cannot be read or written.
        """
        state = self._machine.failed(self.state, self._whole())
        self._store(state)
        return self._loaded(state, fell_back=True)

    def boot(self) -> Boot:
        """Decide what runs, count the try durably, and load it. Call it once at every start of the device.

        Raises:
            NoBootableSlotError: No slot is whole.
            StorageFullError: The disk is full, and a try could not be counted or a fallback not be kept.
            DurableError: The state cannot be written.
        """
        try:
            before = self.state
        except DurableError as error:
            # The safe end of a state that no power cut can make: forget the slots, run the factory image.
            _LOG.error("the state of the slots is lost, the factory image is used: %s", error)
            before = SlotState()
            return self._loaded(self._machine.booted(before, self._whole(before)), fell_back=True)
        state = self._machine.booted(before, self._whole(before))
        if state != before:
            self._store(state)
        return self._loaded(state, fell_back=state.active is not before.active and before.active is not None)

    def load(self, slot: Slot | None = None) -> Bundle:
        """Return the bundle in a slot, verified now, without counting a try.

        Args:
            slot: None: the active one.

        Raises:
            NotFoundError: The slot is empty, or none is active.
            ContentError: Its file is not what was installed.
            DurableError: It cannot be read.
        """
        wanted = self.state.active if slot is None else slot
        record = None if wanted is None else self.record(wanted)
        if wanted is None or record is None:
            raise NotFoundError(f"slot {_name(wanted)} holds no bundle", hint="install and activate a bundle first")
        data = self._disk.read(self._path(wanted))
        if data is None or (got := digest_of(data)) != record.sha256:
            found = "missing" if data is None else f"of digest {got}"
            raise ContentError(f"the file of slot {wanted.value} is {found}, expected {record.sha256}")
        return unpack_image(data)

    def manifests(self) -> tuple[BundleManifest, ...]:
        """Return the manifests of all slots that are whole: what a cache of chunks should keep for a rollback.

        Raises:
            DurableError: The state cannot be read.
        """
        return tuple(self.load(slot).manifest for slot in sorted(self._whole()))

    def _loaded(self, state: SlotState, *, fell_back: bool) -> Boot:
        slot = state.active or Slot.FACTORY  # every way here chose a slot or raised
        return Boot(slot=slot, bundle=self.load(slot), on_probation=state.on_probation, fell_back=fell_back)

    def _whole(self, state: SlotState | None = None) -> frozenset[Slot]:
        """Return the slots whose files are right."""
        known = self.state if state is None else state
        try:
            factory = self.factory
        except NflError as error:
            _LOG.error("the factory image cannot be used: %s", error)
            factory = None
        records = {Slot.A: known.a, Slot.B: known.b, Slot.FACTORY: factory}
        return frozenset(
            slot for slot, record in records.items() if record is not None and self._is_whole(slot, record)
        )

    def _is_whole(self, slot: Slot, record: SlotRecord) -> bool:
        data = self._disk.read(self._path(slot))
        return data is not None and digest_of(data) == record.sha256

    def _path(self, slot: Slot) -> Path:
        return self._folder / f"slot-{slot.value}"

    def _store(self, state: SlotState) -> None:
        self._record.store(canonical_json(state.model_dump(mode="json")))


def _parse(payload: bytes | None) -> SlotState | None:
    try:
        return None if payload is None else SlotState.model_validate_json(payload)
    except ValidationError as error:
        raise DurableError(f"the state of the slots cannot be understood: {error.error_count()} faults") from error


def _record_of(bundle: Bundle, image: bytes) -> SlotRecord:
    return SlotRecord(
        version=bundle.manifest.version, content_digest=bundle.manifest.content_digest, sha256=Digest(digest_of(image))
    )


def _name(slot: Slot | None) -> str:
    return "none" if slot is None else slot.value
