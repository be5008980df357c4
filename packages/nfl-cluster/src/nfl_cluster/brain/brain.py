"""The root's brain: what it does with a message, and what it does when time passes.

Rules:

* a step is decided, stored with its events in one durable record, and then carried out; what is carried out follows
  from the record alone and may be repeated. So the root can be killed anywhere: it goes on, and counts nothing twice;
* a candidate is made when enough batches are in, no rollout is running and no order of an operator waits for the end of
  one; it is published when every gate passed;
* a round opens when everybody is offered the running version, after a refusal, when an operator asks, or when the open
  one has gone on for long while batches wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from nfl_cluster.aggregate.buffer import Measured
from nfl_cluster.aggregate.robust import combine_batches, score_batches
from nfl_cluster.brain.content import Contents
from nfl_cluster.brain.intake import Intake
from nfl_cluster.brain.judges import Judges
from nfl_cluster.brain.mail import Postman
from nfl_cluster.brain.outcome import tell_outcome
from nfl_cluster.brain.proposals import take_proposal
from nfl_cluster.brain.publisher import Publisher
from nfl_cluster.brain.rounds import open_round
from nfl_cluster.brain.state import Buffered, Candidate, Plan, RootState
from nfl_cluster.brain.store import RootStore
from nfl_cluster.mailbox import Mailbox, Message
from nfl_cluster.operations import NEWEST, OPERATOR, RUNNING, Order, parse_order
from nfl_cluster.registry import CandidateRow, Registry
from nfl_cluster.rollout import RolloutDriver
from nfl_core.config import FleetConfig
from nfl_core.durable import read_file
from nfl_core.errors import ConflictError, MalformedError, NflError, NotFoundError, StorageFullError
from nfl_core.ids import BatchId, RegionId, SiteId, digest_of
from nfl_core.server import server_step
from nfl_core.wire import sites_pb2
from nfl_ota import Complete, Halt, OpenWave, Phase, Repository, RollBack
from nfl_ota.rollout import Action
from nfl_secure.identity import Principal, Role
from nfl_secure.messages import verify

RENEW_AFTER_WINDOWS = 2.5  # a round that has not filled the buffer by then will not
POLICY_LIFETIME = timedelta(hours=1)
_LOG = logging.getLogger(__name__)


class Brain:
    """Decides and carries out.

    Args:
        config: Of the fleet.
        principal: The root.
        mailbox: Its mailbox.
        store: Its state.
        registry: Its registry.
        repository: Its repository, with at least one version.
        contents: Reads that repository.
        judges: Gates and scales.
        clock: Now, aware.
    """

    def __init__(
        self,
        config: FleetConfig,
        *,
        principal: Principal,
        mailbox: Mailbox,
        store: RootStore,
        registry: Registry,
        repository: Repository,
        contents: Contents,
        judges: Judges,
        clock: Callable[[], datetime],
    ) -> None:
        self._config, self._principal, self._clock = config, principal, clock
        self._mailbox, self._store, self._registry, self._judges = mailbox, store, registry, judges
        self._contents = contents
        self._leaves = frozenset(SiteId(leaf.site) for leaf in config.leaves)
        regions = {leaf.site: leaf.region for leaf in config.leaves}
        self._intake = Intake(store, registry, principal=principal, regions=regions, clock=clock)
        self._driver = RolloutDriver(config.rollout, store.state.rollout)
        self._publisher = Publisher(
            config, store=store, registry=registry, repository=repository, contents=contents, clock=clock
        )
        self._postman = Postman(config, mailbox=mailbox, store=store, repository=repository, intake=self._intake)
        self._order_waits = False
        self._adopt_first_version()

    def tick(self) -> None:
        """Read mail, do what is due, post what is new.

        Raises:
            StorageFullError: The disk is full; the next tick goes on.
            NflError: Anything else ends the root: its state is as it was.
        """
        self._intake.forget_halves()
        self._order_waits = False
        for message in self._mailbox.incoming():
            is_done = self._take(message)
            self._commit()
            if is_done:
                self._mailbox.done(message)
        self._act(self._driver.on_tick(self._clock()))
        self._commit()
        self._advance()
        self._postman.post_news(self._driver)
        self._commit()

    def _commit(self) -> None:
        self._store.state.rollout = self._driver.state
        self._store.commit()

    def _take(self, message: Message) -> bool:
        """Handle one message; False when it has to wait. What is wrong with it is journaled, and it is done."""
        try:
            return self._apply(message)
        except StorageFullError:
            raise
        except NflError as error:
            _LOG.warning(
                "mail %s from %s is not usable: %s [%s]", message.kind, message.peer, error.message, error.code
            )
            self._store.tell(
                "mail-refused", kind=message.kind, sender=message.peer, code=error.code, why=error.message[:300]
            )
            return True

    def _apply(self, message: Message) -> bool:
        state, running = self._store.state, self._store.state.path[-1].version
        match message.kind:
            case "batch-sum" if message.peer in self._leaves:
                self._intake.take_batch_sum(message.payload, self._contents.of(running).schema)
            case "mask-sum" if message.peer == self._config.keeper.site:
                self._intake.take_mask_sum(message.payload, self._contents.of(running).schema)
            case "roster-refused" if message.peer == self._config.keeper.site:
                self._intake.take_refusal(message.payload)
            case "keeper-key" if message.peer == self._config.keeper.site:
                ca_pem = self._principal.ca_pem
                verify(message.payload, kind="keeper-key", ca_pem=ca_pem, role=Role.KEEPER, at=self._clock())
                state.wants_policy = state.wants_policy or not state.keeper_key
                state.keeper_key = message.payload.hex()
            case "health" if message.peer in self._leaves:
                self._act(self._driver.on_health(_health_of(message)))
            case "operator" if message.peer == OPERATOR:
                return self._obey(parse_order(message.payload))
            case kind:
                raise MalformedError(f"{message.peer} sends a message of kind {kind!r} that the root does not take")
        return True

    def _advance(self) -> None:
        """Do the next steps of making versions, each committed before the next."""
        state = self._store.state
        if state.candidate is not None and state.candidate.status == "judging":
            self._judge(state.candidate)
            self._commit()
        elif self._may_make_candidate():
            self._make_candidate()
            self._commit()
            if state.candidate is not None and state.candidate.status == "judging":
                self._judge(state.candidate)
                self._commit()
        if state.plan is not None and self._driver.phase is not Phase.RUNNING:
            self._carry_out(state.plan)
            self._commit()
        if not state.keeper_key and not state.scales:
            self._measure_scales()
        if self._may_open_round():
            content = self._contents.of(state.path[-1].version)
            opened = open_round(
                self._config,
                store=self._store,
                content=content,
                judges=self._judges,
                principal=self._principal,
                now=self._clock(),
                lifetime=POLICY_LIFETIME,
            )
            if opened is not None:
                self._intake.keep_policy(state.policy_id, opened)
            self._commit()

    def _measure_scales(self) -> None:
        """Measure the first round's scales while the keeper's key is on its way: that takes seconds."""
        content = self._contents.of(self._store.state.path[-1].version)
        scales = self._judges.scales(content)
        if scales is not None:
            self._store.state.scales = {int(content.version): scales}
            self._commit()

    def _may_make_candidate(self) -> bool:
        # An order that waits goes first: where batches never end, a rollout would run whenever it is looked at.
        free = self._store.state.plan is None and self._driver.phase is not Phase.RUNNING
        return free and not self._store.state.is_paused and not self._order_waits

    def _make_candidate(self) -> None:
        state = self._store.state
        for batch, why in [(batch, self._unfit(batch)) for batch in state.buffer]:
            if why:
                self._intake.drop(batch.batch_id, why, batch=batch)
                state.buffer.remove(batch)
        if len(state.buffer) < self._config.root.batches_per_version:
            return
        chosen = list(state.buffer)
        content = self._contents.of(state.path[-1].version)
        regions = sorted(content.tensors)
        measured = [self._measured(batch) for batch in chosen]
        shadow_P = self._judges.shadow(content) if self._config.root.robust != "mean" else None
        outcome = combine_batches(
            measured,
            schema=content.schema,
            regions=regions,
            rule=self._config.root.robust,
            max_attacker_fraction=self._config.root.max_attacker_fraction,
            remembered=state.norms,
            shadow_P=shadow_P,
            own_shares=state.own_shares if self._config.root.learned_scope else None,
        )
        names = sorted(batch.batch_id for batch in chosen)
        candidate_id = digest_of("|".join((str(content.version), *names)).encode())[:32]
        velocities = self._store.get_arrays("momentum", f"{state.momentum}.safetensors") if state.momentum else {}
        fresh: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        for region in regions:
            velocity = velocities.get(region)
            new_P, fresh[region] = server_step(
                content.schema.flatten(content.tensors[region]),
                outcome.moved[region],
                None if velocity is None else velocity.astype(np.float32),
                learning_rate=self._config.root.server_learning_rate,
                momentum=self._config.root.server_momentum,
            )
            self._store.put_arrays(content.schema.unflatten(new_P), "candidates", candidate_id, f"{region}.safetensors")
        self._store.put_arrays(fresh, "momentum", f"{candidate_id}.safetensors")
        tell_outcome(self._store, outcome, rule=self._config.root.robust)
        if shadow_P is not None:
            state.scores = {
                score.batch_id: (score.against, score.energy) for score in score_batches(measured, shadow_P)
            }
            state.scores_number += 1
        state.norms = dict(outcome.norms)
        state.own_shares = dict(outcome.own_shares)
        state.candidate = Candidate(
            candidate_id=candidate_id,
            base_version=content.version,
            batches=tuple(names),
            num_contributions=sum(batch.num for batch in chosen),
            at=self._clock().isoformat(),
        )
        self._record(state.candidate)
        for batch in chosen:
            state.finished[batch.batch_id] = "used"
            self._intake.record(batch.batch_id, batch, status="used", candidate=candidate_id)
        state.buffer = []

    def _judge(self, candidate: Candidate) -> None:
        state = self._store.state
        running = self._contents.of(state.path[-1].version)
        tensors = self._publisher.candidate_tensors(candidate.candidate_id, running)
        sizes = self._publisher.bundle_bytes(tensors, running)
        judgement = self._judges.judge(tensors, running=running, bundle_bytes=sizes)
        candidate.gates = judgement.gates
        candidate.accuracy = {str(region): value for region, value in judgement.accuracy.items()}
        candidate.status = "refused" if judgement.refused else "passed"
        self._store.tell("candidate", id=candidate.candidate_id, accuracy=dict(candidate.accuracy))
        for gate in judgement.refused:
            why = f"{gate.name} is {gate.value:g}, allowed {gate.limit:g}"
            self._store.tell("gate-refused", candidate=candidate.candidate_id, gate=gate.name, why=why)
        if judgement.refused:
            state.wants_policy = True
        else:
            state.momentum = candidate.candidate_id
            state.plan = self._plan(candidate=candidate.candidate_id)
        self._record(candidate)

    def _carry_out(self, plan: Plan) -> None:
        state = self._store.state
        before = state.path[-1].version
        step = self._publisher.publish(plan, accuracy=self._judges.accuracy)
        if plan.restores is not None:
            kept = [old for old in state.path if old.version < plan.restores]
            state.path = [*kept, step]
            state.momentum = None  # a velocity towards content that was given up
            self._store.tell(
                "rolled-back", version=plan.failed, to=plan.restores, new_version=plan.version, digests=step.digests
            )
        else:
            state.path.append(step)
            self._store.tell(
                "published",
                version=plan.version,
                digests=step.digests,
                accuracy=step.accuracy,
                base=before,
                candidate=plan.candidate,
                override=plan.override,
            )
        if state.candidate is not None and state.candidate.candidate_id == plan.candidate:
            state.candidate.status = "published"
            self._record(state.candidate)
        state.plan = None
        state.wants_policy = True
        previous = plan.restores if plan.restores is not None else before
        self._act(
            self._driver.start(
                self._publisher.number(plan),
                previous=self._publisher.version_id(previous),
                at_once=plan.restores is not None,
                now=self._clock(),
            )
        )

    def _act(self, actions: tuple[Action, ...]) -> None:
        """Note what the rollout decided; leaves hear of it with the next mail."""
        state = self._store.state
        for action in actions:
            state.rollout_number += isinstance(action, OpenWave | Halt)
            match action:
                case OpenWave(version=version, fraction=fraction):
                    self._store.tell("wave-opened", version=int(version), fraction=fraction)
                case Halt(version=version, reason=reason):
                    self._store.tell("rollout-halted", version=int(version), why=reason)
                case RollBack(version=version, to=to):
                    state.plan = self._plan(restores=int(to), failed=int(version))
                case Complete(version=version):
                    self._store.tell("rollout-complete", version=int(version))

    def _obey(self, order: Order) -> bool:
        state = self._store.state
        busy = state.plan is not None or self._driver.phase is Phase.RUNNING
        match order.action:
            case "pause" | "resume":
                state.is_paused = order.action == "pause"
            case "open-round":
                state.wants_policy = True
            case "halt":
                self._act(self._driver.halt(order.reason))
            case "rollback":
                self._roll_back(order)
            case "override-publish" | "propose":
                if busy or (order.action == "propose" and _is_judging(state)):
                    self._order_waits = True
                    return False
                (self._override if order.action == "override-publish" else self._propose)(order)
        self._store.tell("order", action=order.action, reason=order.reason)
        return True

    def _roll_back(self, order: Order) -> None:
        state = self._store.state
        known = [step.version for step in state.path[:-1]]
        to = order.to if order.to is not None else (known[-1] if known else 0)
        if to not in known:
            raise ConflictError(f"version {to} is not one before the running one, which are {known}")
        if state.plan is not None:
            raise ConflictError("another publication is being carried out")
        failed = state.path[-1].version
        if self._driver.phase in (Phase.RUNNING, Phase.COMPLETE):
            self._act(self._driver.halt(order.reason))
            state.plan = None  # the halt goes back one version; the operator says how far
        state.plan = self._plan(restores=to, failed=failed)

    def _override(self, order: Order) -> None:
        state = self._store.state
        newest = state.candidate.candidate_id if state.candidate is not None else None
        graph = None
        if order.graph is not None:
            data = read_file(Path(order.graph))
            graph = digest_of(data)
            self._store.put(data, "graphs", graph)
        chosen = newest if order.candidate == NEWEST else order.candidate
        if order.candidate == RUNNING or (order.candidate == NEWEST and newest is None):
            state.plan = self._plan(source=state.path[-1].version, override=order.reason, graph=graph)
            return
        if chosen is None or not self._store.path("candidates", chosen).is_dir():
            raise NotFoundError(f"no candidate {chosen}")
        state.plan = self._plan(candidate=chosen, override=order.reason, graph=graph)

    def _propose(self, order: Order) -> None:
        """Make a proposal the candidate; the gates come next, as for every other."""
        candidate = take_proposal(
            order.candidate,
            store=self._store,
            content=self._contents.of(self._store.state.path[-1].version),
            at=self._clock().isoformat(),
        )
        self._store.state.candidate = candidate
        self._record(candidate)

    def _plan(
        self,
        *,
        candidate: str | None = None,
        source: int | None = None,
        restores: int | None = None,
        failed: int | None = None,
        override: str | None = None,
        graph: str | None = None,
    ) -> Plan:
        return Plan(
            version=self._publisher.next_version(),
            created_at=self._clock().isoformat(),
            candidate=candidate,
            source=source,
            restores=restores,
            failed=failed,
            override=override,
            graph=graph,
        )

    def _may_open_round(self) -> bool:
        state = self._store.state
        if state.is_paused or state.plan is not None or not state.keeper_key or self._driver.fraction < 1.0:
            return False
        if state.wants_policy or not state.policy_at:
            return True
        age = self._clock() - datetime.fromisoformat(state.policy_at)
        stalled = age > timedelta(seconds=RENEW_AFTER_WINDOWS * self._config.privacy.window_s)
        return age > 0.8 * POLICY_LIFETIME or (
            stalled and bool(state.buffer) and self._driver.phase is not Phase.RUNNING
        )

    def _unfit(self, batch: Buffered) -> str:
        """Return why a batch cannot be part of a candidate, empty when it can."""
        behind = self._staleness(batch)
        if behind is None:
            return f"its base, version {batch.base_version}, was rolled back"
        most = self._config.root.max_staleness
        return f"its base is {behind} versions behind, at most {most} count" if behind > most else ""

    def _staleness(self, batch: Buffered) -> int | None:
        path = self._store.state.path
        for behind, step in enumerate(reversed(path)):
            if step.digests.get(batch.region) == batch.base_digest:
                return behind
        return None

    def _measured(self, batch: Buffered) -> Measured:
        arrays = self._store.get_arrays("batches", f"{batch.batch_id}.safetensors")
        return Measured(
            batch_id=BatchId(batch.batch_id),
            region=RegionId(batch.region),
            mean_P=arrays["mean"].astype(np.float32),
            weight=batch.weight,
            staleness=self._staleness(batch) or 0,
            num=batch.num,
        )

    def _record(self, candidate: Candidate) -> None:
        self._registry.put_candidate(
            CandidateRow(
                candidate_id=candidate.candidate_id,
                base_version=candidate.base_version,
                status=candidate.status,
                num_contributions=candidate.num_contributions,
                at=candidate.at,
                gates=candidate.gates,
            )
        )

    def _adopt_first_version(self) -> None:
        """Begin with what the repository holds when this root has no memory of its own yet."""
        state = self._store.state
        if state.path:
            return
        step = self._publisher.adopt(accuracy=self._judges.accuracy)
        state.path = [step]
        self._store.tell("published", version=step.version, digests=step.digests, accuracy=step.accuracy, base=None)
        started = self._driver.start(
            self._publisher.version_id(step.version), previous=None, at_once=True, now=self._clock()
        )
        self._act(started)
        self._commit()


def _is_judging(state: RootState) -> bool:
    return state.candidate is not None and state.candidate.status == "judging"


def _health_of(message: Message) -> sites_pb2.HealthCounts:
    try:
        counts = sites_pb2.HealthCounts.FromString(message.payload)
    except DecodeError as error:
        raise MalformedError("a message holds no health counts") from error
    if counts.leaf != message.peer:
        raise MalformedError(f"{message.peer} sends the health of leaf {counts.leaf[:64]!r}")
    return counts
