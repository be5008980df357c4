"""Perform what the agent's machine decides: the loop of one device over real parts.

`AgentRuntime` owns the parts of one device (slots, store, outbox, guard, counters) and takes the others (link, samples,
learner, clocks) as parameters, so that a simulated device is this very agent with another world around it.

Rules kept here:

* The durable part of the machine's state is stored before an action is performed that leaves traces.
* Foreign trouble becomes an event; a programming error leaves the loop, and the host restarts the agent from its
  durable state.
* What must survive is written before what depends on it: outbox before "contributed", checkpoint before pointer, slot
  before state.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from nfl_core import metrics
from nfl_core.durable import DualRecord
from nfl_core.errors import (
    DurableError,
    MalformedError,
    NflError,
    NotFoundError,
    ProcessDiedError,
    StorageFullError,
    TransportError,
    VerificationError,
)
from nfl_core.ids import Digest
from nfl_core.wire import device_pb2
from nfl_edge import agent, words
from nfl_edge.agent import AgentSettings
from nfl_edge.contribute import Contributor, EgressTap
from nfl_edge.errors import AgentInvariantError, ReceiptError, UnsafeOutputError
from nfl_edge.folder import DeviceFolder
from nfl_edge.learn import Learner
from nfl_edge.link import Link
from nfl_edge.memory import decode_state, encode_state
from nfl_edge.models import Models
from nfl_edge.outbox import Outbox
from nfl_edge.safety import Guard, Inference
from nfl_edge.sense import FileSource, SampleSource
from nfl_edge.settings import DeviceSettings
from nfl_edge.telemetry import Counters, EventJournal, utc_now
from nfl_edge.updates import Updates
from nfl_edge.words import Action, Base, Event
from nfl_secure.identity.keys import Principal

_LOG = logging.getLogger(__name__)
AGENT_VERSION = "0.1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is around an agent and may be another one in a simulation.

    Attributes:
        monotonic: Seconds that only grow.
        now: Present time, UTC.
        sleep: Waits for seconds.
        chance: Draws the jitter of waits; decides nothing else.
        egress_tap: Sees integers before they are masked; None in the product, a double in tests of the sums.
    """

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = utc_now
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: random.Random = field(default_factory=random.Random)
    egress_tap: EgressTap | None = None


class AgentRuntime:
    """One device at work.

    Args:
        folder: The device's folder; everything durable is in it.
        settings: Who the device is and how it works.
        principal: Its keys.
        link: Its leaf.
        learner: Who learns for it.
        source: Its samples; None: the file in its folder.
        world: Clocks and chance.
        agent_settings: Times of the loop; None: from the fleet's settings.

    Raises:
        DurableError: The device's state cannot be read.
    """

    def __init__(
        self,
        folder: DeviceFolder,
        *,
        settings: DeviceSettings,
        principal: Principal,
        link: Link,
        learner: Learner,
        source: SampleSource | None = None,
        world: World | None = None,
        agent_settings: AgentSettings | None = None,
    ) -> None:
        folder.make()
        self.folder = folder
        self.settings = settings
        self._world = world or World()
        self._link = link
        self._source = source or FileSource(folder.samples)
        self._agent_settings = agent_settings or AgentSettings(poll_s=settings.settings.edge.poll_s)
        self.journal = EventJournal(folder.events, clock=self._world.now)
        self.counters = Counters(folder.state / "counters")
        self.guard = Guard(budget_ms=settings.settings.edge.latency_budget_ms)
        self._record = DualRecord(folder.state / "agent")
        self._outbox = Outbox(folder.outbox)
        self._models = Models(folder, settings=settings, source=self._source, learner=learner, guard=self.guard)
        self._updates = Updates(
            folder, link=link, settings=settings, clock=self._world.now, keep=self._models.manifests
        )
        self._contributor = Contributor(
            folder,
            settings=settings,
            principal=principal,
            outbox=self._outbox,
            clock=self._world.now,
            tap=self._world.egress_tap,
        )
        self.state = decode_state(self._record.load())
        self._stored = self.state.durable()
        self._wake = asyncio.Event()
        self._stopping = False
        self._unsafe = False
        self.booted = asyncio.Event()

    def infer(self, x_BCHW: NDArray[np.float32]) -> Inference:
        """Infer a batch, float32 [B, C, H, W] in [0, 1], guarded. Raises UnsafeOutputError."""
        return self.guard.infer(x_BCHW)

    def stop(self) -> None:
        """Ask the loop to end after the action in flight."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Say that there may be new samples: the loop looks at once instead of at its next poll."""
        self._wake.set()

    async def run(self) -> None:
        """Run the loop until `stop`. Raises NflError when the device's own state cannot be read or written."""
        event: Event = await asyncio.to_thread(self._boot)
        while True:
            step = agent.step(self.state, event, self._agent_settings)
            self.state = step.state
            await self._remember()
            if step.action is None:
                raise AgentInvariantError(f"{type(event).__name__} has no meaning while {self.state.phase.value}")
            self.booted.set()
            if self._stopping:
                return
            event = await self._perform(step.action)

    async def _remember(self) -> None:
        """Store the durable part of the state before anything is done; a full disk stops the loop, not inference."""
        durable = self.state.durable()
        while durable != self._stored and not self._stopping:
            try:
                self._record.store(encode_state(durable))
            except StorageFullError as error:
                self._log("disk-full", error)
                await self._world.sleep(self._agent_settings.backoff_max_s)
            else:
                self._stored = durable
                self.counters.save()

    def _boot(self) -> Event:
        active = self._models.boot(keep=(self.state.shadow, self.state.before))
        self.journal.write("booted", phase=self.state.phase.value, version=active.version if active else 0)
        return words.Booted(
            now=self._now(), active=active, num_pending=len(self._outbox), learned_from=self._models.learned_from
        )

    async def _perform(self, action: Action) -> Event:
        """Perform one action and say what came of it."""
        try:
            match action:
                case words.Wait():
                    return await self._wait(action)
                case words.Greet():
                    return await self._greet()
                case words.Learn():
                    return await self._learn()
                case words.Send():
                    return await self._send()
                case words.Fetch():
                    return await self._fetch(action)
                case words.Merge():
                    return await self._merge(action)
                case words.Report():
                    return await self._report(action)
                case _:
                    return await asyncio.to_thread(self._perform_locally, action)
        except AgentInvariantError:
            raise
        except NflError as error:
            self._log("fault", error, action=type(action).__name__)
            blameless = isinstance(error, StorageFullError | ProcessDiedError)
            return words.Fault(
                now=self._now(), reason=error.code, jitter=self._world.chance.random(), condemns=not blameless
            )

    def _perform_locally(self, action: Action) -> Event:
        """Perform an action on disk and engine, which would block the loop."""
        match action:
            case words.Seal():
                return self._seal(action)
            case words.Activate():
                return self._activate(action)
            case words.Probe():
                return self._probe(action)
            case words.Confirm():
                return self._confirm(action)
            case words.FallBack():
                return self._fall_back(action)
            case _:
                raise AgentInvariantError(f"no way to perform {type(action).__name__}")

    async def _wait(self, action: words.Wait) -> Event:
        delay = max(0.0, action.until - self._now())
        if delay:
            sleeping = asyncio.ensure_future(self._world.sleep(delay))
            waking = asyncio.ensure_future(self._wake.wait())
            _, pending = await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
        else:
            await asyncio.sleep(0)
        self._wake.clear()
        self._self_check()
        return words.Tick(now=self._now(), revision=self._source.revision())

    def _self_check(self) -> None:
        """Infer one sample of the owner's, so that a device that nobody asks still knows that it could answer."""
        if self.guard.active is None:
            return
        try:
            self.guard.infer(self._models.next_input())
        except UnsafeOutputError as error:
            if not self._unsafe:
                self._log("unsafe-output", error)
            self._unsafe = True
        else:
            self._unsafe = False

    async def _greet(self) -> Event:
        base = self.state.base
        request = device_pb2.HelloRequest(
            agent_version=AGENT_VERSION,
            installed_version=base.version if base else 0,
            installed_digest=base.digest if base else "",
            schema_fingerprint=self._models.schema.fingerprint if self._models.schema else "",
        )
        try:
            reply = await self._link.hello(request)
        except NflError as error:
            return self._away(error)
        if not self.state.linked:
            self.counters.add(metrics.DEVICE_RECONNECTS)
            self.journal.write("linked", leaf=self.settings.leaf_id, newest=reply.newest_version)
        offer = None
        if reply.bundle_target and reply.newest_digest:
            offer = Base(version=reply.newest_version, digest=Digest(reply.newest_digest), target=reply.bundle_target)
        policy = self._policy(reply.policy)
        return words.Greeted(
            now=self._now(),
            offer=offer,
            policy=policy,
            retry_after_s=reply.retry_after_ms / 1000,
        )

    def _policy(self, signed: bytes) -> words.Policy | None:
        """A policy that is not to be obeyed is as good as none; inference, learning and updates go on."""
        try:
            return self._contributor.read_policy(signed, schema=self._models.schema, monotonic=self._now())
        except (VerificationError, MalformedError) as error:
            self.counters.add(metrics.DEVICE_REFUSALS)
            self._log("policy-refused", error)
            return None

    def _away(self, error: NflError) -> Event:
        if self.state.linked or not isinstance(error, TransportError):
            self._log("leaf-away", error)
        return words.LinkFailed(now=self._now(), jitter=self._world.chance.random())

    async def _learn(self) -> Event:
        revision = self._source.revision()
        report = await self._models.learn()
        self.counters.add(metrics.DEVICE_MICRO_UPDATES)
        self.counters.add(metrics.DEVICE_STEPS, report.num_steps)
        self.journal.write(
            "micro-update",
            version=self.state.base.version if self.state.base else 0,
            accuracy=report.accuracy,
            loss_before=report.loss_before,
            loss_after=report.loss_after,
            num_steps=report.num_steps,
            cpu_s=report.cpu_s,
        )
        return words.Learned(now=self._now(), revision=revision)

    def _seal(self, action: words.Seal) -> Event:
        base, schema, checkpoint = self.state.base, self._models.schema, self._models.checkpoint
        if base is None or schema is None or checkpoint is None:
            raise AgentInvariantError("sealing without a base")
        try:
            sealed = self._contributor.seal(checkpoint, schema=schema, base=base)
        except (VerificationError, MalformedError, NflError) as error:
            if isinstance(error, DurableError):
                raise
            self.counters.add(metrics.DEVICE_REFUSALS)
            self._log("seal-refused", error, policy=action.policy_id)
            return words.SealRefused(now=self._now(), policy_id=action.policy_id)
        self.counters.add(metrics.DEVICE_CONTRIBUTIONS)
        self.journal.write(
            "contributed",
            contribution=sealed.contribution_id,
            policy=sealed.policy_id,
            version=base.version,
            bytes=sealed.num_bytes,
            updates=checkpoint.meta.num_updates_here,
        )
        return words.Sealed(now=self._now(), policy_id=sealed.policy_id, base_digest=base.digest)

    async def _send(self) -> Event:
        entry = self._outbox.oldest()
        if entry is None:
            return words.SendRefused(now=self._now())
        try:
            receipt = await self._link.contribute(entry)
            self._contributor.check_receipt(receipt, entry)
        except ReceiptError as error:
            # Not accepted, not dropped: the entry stays and is sent again.
            self.counters.add(metrics.DEVICE_REFUSALS)
            self._log("receipt-refused", error, contribution=entry.contribution_id)
            return words.LinkFailed(now=self._now(), jitter=self._world.chance.random())
        except NflError as error:
            if not _is_final(error):
                return self._away(error)
            self.counters.add(metrics.DEVICE_REFUSALS)
            self._log("contribution-refused", error, contribution=entry.contribution_id)
            self._outbox.remove(entry.contribution_id)
            return words.SendRefused(now=self._now())
        self._outbox.remove(entry.contribution_id)
        self.counters.add(metrics.DEVICE_RECEIPTS)
        self.counters.add(metrics.DEVICE_SENT_BYTES, len(entry.body))
        self.journal.write("receipt", contribution=entry.contribution_id, bytes=len(entry.body))
        return words.Sent(now=self._now())

    async def _fetch(self, action: words.Fetch) -> Event:
        offer = action.offer
        started = self._now()
        try:
            fetched = await self._updates.fetch(offer)
            await asyncio.to_thread(self._models.stage, fetched.bundle)
        except StorageFullError as error:
            self._log("install-refused", error, version=offer.version)
            return words.FetchFailed(now=self._now(), jitter=self._world.chance.random())
        except TransportError as error:
            return self._away(error)
        except NflError as error:
            self.counters.add(metrics.DEVICE_REFUSALS)
            self._log("bundle-refused", error, version=offer.version)
            return words.FetchFailed(now=self._now(), jitter=self._world.chance.random())
        self.counters.add(metrics.DEVICE_FETCHES)
        self.counters.add(metrics.DEVICE_RECEIVED_BYTES, fetched.num_bytes)
        self.journal.write("fetched", version=offer.version, bytes=fetched.num_bytes, seconds=self._now() - started)
        return words.Fetched(now=self._now(), before=self._models.current_name)

    async def _merge(self, action: words.Merge) -> Event:
        candidate = action.candidate
        if action.first:
            learnt = await self._models.initialise(candidate)
            self.journal.write("initialised", version=candidate.version, accuracy=learnt.accuracy)
            return words.Merged(now=self._now(), shadow=learnt.checkpoint)
        result = await self._models.merge(candidate)
        self.journal.write(
            "merged" if result.checkpoint else "merge-refused",
            version=candidate.version,
            refusal=result.refusal,
            alpha=result.alpha,
            shock=result.shock,
            loss_before=result.loss_before,
            loss_after=result.loss_after,
            accuracy_before=result.accuracy_before,
            accuracy_after=result.accuracy_after,
            accuracy=result.accuracy,
            cpu_s=result.cpu_s,
        )
        if not result.checkpoint:
            self.counters.add(metrics.DEVICE_MERGES_REFUSED)
            return words.MergeRefused(now=self._now())
        self.counters.add(metrics.DEVICE_MERGES)
        return words.Merged(now=self._now(), shadow=result.checkpoint)

    def _activate(self, action: words.Activate) -> Event:
        self._models.activate(action.candidate, shadow=action.shadow, first=self.state.base is None)
        self.counters.add(metrics.DEVICE_INSTALLS)
        return words.Activated(now=self._now())

    def _probe(self, action: words.Probe) -> Event:
        result = self._models.probe()
        self.counters.add(metrics.DEVICE_INFERENCES, result.num_inferences)
        if result.reason:
            return words.ProbationFailed(now=self._now(), reason=result.reason)
        self.counters.add(metrics.DEVICE_PROBATIONS_PASSED)
        self.journal.write(
            "probation-passed",
            version=action.candidate.version,
            num_inferences=result.num_inferences,
            latency_ms=result.latency_ms,
            accuracy=result.accuracy,
            reference=result.reference,
        )
        return words.ProbationPassed(now=self._now())

    def _confirm(self, action: words.Confirm) -> Event:
        self._models.confirm(action.candidate)
        self.journal.write("installed", version=action.candidate.version, digest=action.candidate.digest)
        return words.Confirmed(now=self._now())

    def _fall_back(self, action: words.FallBack) -> Event:
        active = self._models.fall_back(action.candidate, before=action.before, condemned=action.condemned)
        self.counters.add(metrics.DEVICE_FALLBACKS)
        self.journal.write(
            "fell-back",
            version=action.candidate.version,
            to=active.version if active else 0,
            why=action.reason or "unknown",
        )
        return words.FellBack(now=self._now(), active=active)

    async def _report(self, action: words.Report) -> Event:
        self.counters.add(metrics.DEVICE_INFERENCES_GUARDED, self.guard.num_guarded - self._guarded)
        self.counters.add(metrics.DEVICE_INFERENCES, self.guard.num_inferences - self._inferences)
        self._guarded, self._inferences = self.guard.num_guarded, self.guard.num_inferences
        self.counters.save()
        request = device_pb2.ReportRequest(
            sequence=action.sequence,
            installed_version=self.state.base.version if self.state.base else 0,
            counters=self.counters.snapshot(),
        )
        try:
            await self._link.report(request)
        except NflError as error:
            return self._away(error)
        return words.Reported(now=self._now())

    _guarded = 0
    _inferences = 0

    def _log(self, event: str, error: NflError, **figures: str | int) -> None:
        _LOG.warning("%s: %s: %s [%s]", self.settings.device_id, event, error, error.code)
        self.journal.write(event, code=error.code, why=error.message[:300], **figures)

    def _now(self) -> float:
        return self._world.monotonic()


def _is_final(error: NflError) -> bool:
    """Say whether sending the same bytes again can never help."""
    return not isinstance(error, TransportError | DurableError | NotFoundError)
