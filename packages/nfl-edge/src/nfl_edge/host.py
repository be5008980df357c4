"""Run several devices in one process: one loop, one trainer, nothing else in common.

Each device has its own folder, certificate, connection and state. When an agent meets a fault that its machine has no
answer for, that agent alone is stopped, the fault is journalled and logged with its traceback, and the agent starts
again from its durable state after a wait that doubles. The others do not notice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nfl_core.errors import DurableError, NflError, ProcessDiedError
from nfl_core.ids import parse_leaf_id
from nfl_edge.errors import DeviceFolderError
from nfl_edge.folder import DeviceFolder, lock_device
from nfl_edge.learn import Learner, TrainerProcess
from nfl_edge.link import FileTap, GrpcLink, Link
from nfl_edge.runtime import AgentRuntime, World
from nfl_edge.sense import SampleSource
from nfl_edge.settings import DeviceSettings, read_settings
from nfl_edge.telemetry import EventJournal
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import Role, SpiffeId

_LOG = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
STOP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Parts that a simulation may replace; None: the product's.

    Attributes:
        world: Clocks, chance and taps.
        source: Samples.
        tap_folder: Where each device's outgoing messages are recorded, as `<device>.tap`.
        leaf_address: Instead of the address from enrolment.
    """

    world: World | None = None
    source: SampleSource | None = None
    tap_folder: Path | None = None
    leaf_address: str | None = None


class Host:
    """Several devices and their trainer.

    Args:
        folders: Folders of enrolled devices.
        learner: Who learns for all of them; None: a trainer process of the host's own.
        wiring: Other parts, for simulations.

    Raises:
        DeviceFolderError: A folder holds no enrolled device, or two folders are the same.
    """

    def __init__(
        self, folders: Sequence[Path], *, learner: Learner | None = None, wiring: Wiring | None = None
    ) -> None:
        if len({folder.resolve() for folder in folders}) != len(folders):
            raise DeviceFolderError("a device is named twice; two agents in one folder would destroy its state")
        self._folders = [DeviceFolder(folder) for folder in folders]
        self._settings = [read_settings(folder) for folder in self._folders]
        self._trainer = TrainerProcess() if learner is None else None
        self._learner: Learner = learner or self._trainer  # type: ignore[assignment]  # one of the two is there
        self._wiring = wiring or Wiring()
        self._stopping = asyncio.Event()
        self.agents: dict[str, AgentRuntime] = {}
        self._started: dict[str, asyncio.Event] = {settings.device_id: asyncio.Event() for settings in self._settings}

    @property
    def device_ids(self) -> list[str]:
        """The devices, in the order of their folders."""
        return [settings.device_id for settings in self._settings]

    @property
    def trainer_pid(self) -> int | None:
        """Process id of the host's own trainer while it runs."""
        return self._trainer.pid if self._trainer else None

    def stop(self) -> None:
        """Ask all agents to end after their action in flight; what takes longer than `STOP_S` is dropped."""
        self._stopping.set()
        if self._trainer is not None:
            self._trainer.abort()
        for agent in self.agents.values():
            agent.stop()

    async def ready(self) -> None:
        """Wait until every agent has loaded what it runs; no leaf is needed for that."""
        await asyncio.gather(*(event.wait() for event in self._started.values()))

    async def run(self) -> None:
        """Run all devices until `stop`.

        Raises:
            DeviceBusyError: Another process runs one of the devices.
        """
        locks = [lock_device(folder) for folder in self._folders]
        pairs = zip(self._folders, self._settings, strict=True)
        tasks = [asyncio.ensure_future(self._keep_running(folder, settings)) for folder, settings in pairs]
        warming = asyncio.ensure_future(self._warm_up())
        try:
            await self._stopping.wait()
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in (*tasks, warming):
                task.cancel()
            await asyncio.gather(*tasks, warming, return_exceptions=True)
            if self._trainer is not None:
                await self._trainer.stop()
            for lock in locks:
                os.close(lock)

    async def _warm_up(self) -> None:
        """Start the trainer before the first request needs it: loading torch takes seconds."""
        if self._trainer is None:
            return
        try:
            await self._trainer.start()
        except ProcessDiedError as error:
            _LOG.warning("the trainer did not start, it is tried again when it is needed: %s", error)

    async def _keep_running(self, folder: DeviceFolder, settings: DeviceSettings) -> None:
        wait_s = FIRST_WAIT_S
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            try:
                await self._run_once(folder, settings)
            except Exception as error:  # noqa: BLE001 - border between devices: journalled with traceback, then restarted
                _report_fault(folder, settings, error)
                self._started[settings.device_id].set()
                wait_s = FIRST_WAIT_S if loop.time() - began > LONGEST_WAIT_S else min(LONGEST_WAIT_S, 2 * wait_s)
                await self._pause(wait_s)

    async def _run_once(self, folder: DeviceFolder, settings: DeviceSettings) -> None:
        principal = await asyncio.to_thread(Principal.open, folder.keys)
        folder.make()
        link = self._connect(folder, settings, principal)
        started = self._started[settings.device_id]
        try:
            agent = await asyncio.to_thread(self._build, folder, settings, principal, link)
            self.agents[settings.device_id] = agent
            watching = asyncio.ensure_future(_pass_on(agent.booted, started))
            try:
                if not self._stopping.is_set():
                    await agent.run()
            finally:
                watching.cancel()
        finally:
            await link.close()

    def _build(self, folder: DeviceFolder, settings: DeviceSettings, principal: Principal, link: Link) -> AgentRuntime:
        return AgentRuntime(
            folder,
            settings=settings,
            principal=principal,
            link=link,
            learner=self._learner,
            source=self._wiring.source,
            world=self._wiring.world,
        )

    def _connect(self, folder: DeviceFolder, settings: DeviceSettings, principal: Principal) -> Link:
        tap = (
            None if self._wiring.tap_folder is None else FileTap(self._wiring.tap_folder / f"{settings.device_id}.tap")
        )
        address = self._wiring.leaf_address or settings.leaf_address
        leaf = SpiffeId(fleet=principal.spiffe.fleet, role=Role.LEAF, name=parse_leaf_id(settings.leaf_id))
        return GrpcLink(address, principal=principal, leaf=leaf, partial=folder.cache / "partial", tap=tap)

    async def _pause(self, wait_s: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        except asyncio.TimeoutError:
            return


async def _pass_on(source: asyncio.Event, target: asyncio.Event) -> None:
    await source.wait()
    target.set()


def _report_fault(folder: DeviceFolder, settings: DeviceSettings, error: Exception) -> None:
    _LOG.error("%s stopped by a fault and starts again: %s", settings.device_id, error, exc_info=error)
    code = error.code if isinstance(error, NflError) else type(error).__name__
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else ""
    try:
        folder.make()
        EventJournal(folder.events).write("agent-restarted", code=code, why=str(error)[:300], place=place)
    except (DeviceFolderError, DurableError) as second:
        _LOG.error("%s: the fault cannot be journalled: %s", settings.device_id, second)
