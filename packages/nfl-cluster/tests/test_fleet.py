"""Root, leaves and keeper together: what goes in is counted once, whatever the courier and the power do."""

from __future__ import annotations

import numpy as np
import pytest

from nfl_cluster.mailbox import Message
from nfl_cluster.operations import OPERATOR, send
from nfl_core import metrics
from nfl_core.errors import NflError
from nfl_core.wire import device_pb2

from .world import KEEPER, LEAVES, ROOT, World, make_config

DEVICES = {f"d{number}": LEAVES[number % 2] for number in range(6)}


def _attach(world: World) -> str:
    world.settle()
    world.install_everywhere(DEVICES, seconds=3)
    return world.hello("d0", LEAVES[0]).newest_digest


def _round(world: World) -> None:
    for name, leaf in DEVICES.items():
        digest = world.hello(name, leaf).newest_digest
        world.contribute(name, leaf, base=digest)
    world.settle()


def _assert_sums_are_plain(world: World) -> None:
    for event in world.events("batch-received"):
        log_events = str(event["batch"])
        members = [
            accepted.contribution_id
            for leaf in world.leaves.values()
            for accepted in leaf.log.accepted()
            if accepted.batch_id == log_events
        ]
        assert len(members) == event["num"]
        plain_P = sum((world.accepted[member][0] for member in members), np.zeros(world.schema.num_shared, np.int64))
        assert np.array_equal(plain_P, world.counts(log_events))


def test_a_version_comes_out_of_contributions_and_reaches_everybody(world: World) -> None:
    _attach(world)
    assert [event["version"] for event in world.events("rollout-complete")] == [1]
    assert len(world.events("policy-opened")) == 1
    _round(world)
    assert len(world.events("batch-received")) == 2
    _assert_sums_are_plain(world)
    published = world.events("published")
    assert [event["version"] for event in published] == [1, 2]
    digests = published[1]["digests"]
    assert isinstance(digests, dict)
    assert digests["north"] != digests["south"]  # the regional level follows its own region
    world.install_everywhere(DEVICES, seconds=6)
    assert [event["version"] for event in world.events("rollout-complete")] == [1, 2]
    assert [event["fraction"] for event in world.events("wave-opened") if event["version"] == 2] == [0.2, 1.0]
    _round(world)
    assert world.events("published")[-1]["version"] == 3


def test_a_refused_candidate_is_kept_and_never_published_and_learning_goes_on(world: World) -> None:
    _attach(world)
    world.judges.refuses = True
    _round(world)
    refused = world.events("gate-refused")
    assert [event["gate"] for event in refused] == ["toy"]
    assert len(world.events("published")) == 1
    candidate = world.brain._registry.candidate(str(refused[0]["candidate"]))
    assert (candidate.status, candidate.num_contributions) == ("refused", 6)
    assert len(world.events("policy-opened")) == 2
    world.judges.refuses = False
    _round(world)
    assert world.events("published")[-1]["version"] == 2


def test_an_overridden_candidate_that_fails_on_canaries_is_halted_and_rolled_back(world: World) -> None:
    base = _attach(world)
    world.judges.refuses = True
    _round(world)
    graph = world.home / "bad.onnx"
    graph.write_bytes(b"another graph")
    send(world.home, "override-publish", reason="on purpose", graph=str(graph))
    world.settle()
    assert world.events("published")[-1]["override"] == "on purpose"
    # Canaries fetch version 2 and fall back by themselves.
    for name, leaf in DEVICES.items():
        if world.hello(name, leaf, version=1, digest=base).newest_version == 2:
            counters = {metrics.DEVICE_FALLBACKS: 1}
            report = device_pb2.ReportRequest(sequence=1, installed_version=1, counters=counters)
            world.leaves[leaf].attendance.report(name, report)  # type: ignore[arg-type]
    world.settle()
    assert [event["version"] for event in world.events("rollout-halted")] == [2]
    back = world.events("rolled-back")[0]
    assert (back["version"], back["to"], back["new_version"]) == (2, 1, 3)
    world.install_everywhere(DEVICES, seconds=3)
    assert world.events("rollout-complete")[-1]["version"] == 3
    assert world.hello("d0", LEAVES[0]).newest_digest == base
    lineage = world.brain._registry.lineage(3)
    assert [(row.version, row.status) for row in lineage] == [(3, "published"), (1, "published")]
    assert world.brain._registry.version(2).status == "rolled-back"
    world.judges.refuses = False
    _round(world)
    assert world.events("published")[-1]["version"] == 4


def test_an_order_that_waits_for_a_rollout_goes_before_the_next_candidate(world: World) -> None:
    """Else a fleet that contributes without a pause would never let an operator in."""
    _attach(world)
    _round(world)
    assert world.events("published")[-1]["version"] == 2
    send(world.home, "override-publish", candidate="running", reason="again, please")
    world.settle()
    assert not world.events("order"), "a rollout runs, so the order waits"
    world.install_everywhere(DEVICES, seconds=2)
    _round(world)  # there is enough for another candidate the moment the rollout ends
    world.install_everywhere(DEVICES, seconds=6)
    third = next(event for event in world.events("published") if event["version"] == 3)
    assert third["override"] == "again, please"


def test_operator_halts_pauses_and_rolls_back(world: World) -> None:
    _attach(world)
    _round(world)
    world.install_everywhere(DEVICES, seconds=6)
    send(world.home, "rollback", reason="odd readings")
    world.settle()
    assert world.events("rolled-back")[0]["to"] == 1
    world.install_everywhere(DEVICES, seconds=3)
    send(world.home, "pause")
    world.settle()
    _round(world)
    assert world.events("published")[-1]["version"] == 2  # the rollback has number 3, and a pause makes no candidates
    send(world.home, "resume")
    world.settle()
    assert world.events("published")[-1]["version"] == 4


def test_an_order_that_makes_no_sense_is_refused_by_name(world: World) -> None:
    world.settle()
    box = world.mailbox(ROOT)
    box.deliver(Message(message_id="order-0", peer=OPERATOR, kind="operator", payload=b'{"action": "dance"}'))
    send(world.home, "rollback", to=7)
    world.settle()
    assert [event["code"] for event in world.events("mail-refused")] == ["config.invalid", "conflict"]


def test_a_batch_that_the_keeper_refuses_is_dropped_by_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    world = World(tmp_path / "home")
    _attach(world)
    for name, leaf in DEVICES.items():
        world.contribute(name, leaf, base=world.hello(name, leaf).newest_digest)
    for leaf in LEAVES:
        world.tick(leaf)
    world.carry()
    world.clock.advance(2 * 3600)  # the keeper was away until the policy was over
    world.settle()
    received = {event["batch"] for event in world.events("batch-received")}
    dropped = {event["batch"] for event in world.events("batch-dropped")}
    assert not received
    assert len(dropped) == 2
    assert world.brain._registry.batch(str(next(iter(dropped)))).status == "dropped"


def test_mail_of_another_sender_is_refused(world: World) -> None:
    world.settle()
    for kind in ("policy", "mask-sum", "rollout"):
        stranger = Message(message_id=f"x-{kind}", peer=LEAVES[1], kind=kind, payload=b"")
        world.mailbox(LEAVES[0]).deliver(stranger)
        world.mailbox(ROOT).deliver(stranger)
        world.mailbox(KEEPER).deliver(stranger)
    world.settle()
    assert len(world.events("mail-refused")) == 3


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_counted_twice_or_lost_under_a_bad_courier_and_kills(tmp_path, seed: int) -> None:  # type: ignore[no-untyped-def]
    world = World(tmp_path / "home", config=make_config(root={"max_staleness": 50}), seed=seed)
    rng, clock = world.rng, world.clock
    sites = list(world.folders)
    for step in range(110):
        site = rng.choice(sites)
        if rng.random() < 0.2:
            world.restart(site)
        world.tick(site)
        world.carry(lossy=True)
        if step % 3 == 0:
            name = rng.choice(list(DEVICES))
            _try_to_contribute(world, name)
        clock.advance(rng.random())
    for _ in range(4):  # the courier gets well; open batches get old enough to close
        clock.advance(6)
        world.install_everywhere(DEVICES, seconds=1)
    for site in sites:
        world.restart(site)
    world.settle()
    _assert_everything_is_accounted_for(world)


def _try_to_contribute(world: World, name: str) -> None:
    leaf = DEVICES[name]
    reply = world.hello(name, leaf)
    if reply.policy and reply.newest_digest:
        world.hello(name, leaf, version=reply.newest_version, digest=reply.newest_digest)
        try:
            world.contribute(name, leaf, base=reply.newest_digest)
        except NflError as error:
            assert error.code in {"policy.violated", "contribution.duplicate"}  # noqa: PT017 - a base of another policy


def _assert_everything_is_accounted_for(world: World) -> None:
    _assert_sums_are_plain(world)
    received = [str(event["batch"]) for event in world.events("batch-received")]
    assert received
    assert len(received) == len(set(received))
    assert not world.events("batch-dropped")  # nothing here is late, stale or forged
    numbers = [
        int(str(event["seq"])) for name in ("published", "candidate", "batch-received") for event in world.events(name)
    ]
    assert len(numbers) == len(set(numbers))
    dropped = {str(event["batch"]) for event in world.events("batch-dropped")}
    still_open = {batch for leaf in world.leaves.values() for batch in leaf.log.sizes()}
    for leaf in world.leaves.values():
        for accepted in leaf.log.accepted():
            fates = (
                accepted.batch_id in received,
                accepted.batch_id in dropped - set(received),
                accepted.batch_id in still_open,
            )
            assert sum(fates) == 1, f"{accepted} is {fates}"
    state = world.brain._store.state
    used = [batch for batch, fate in state.finished.items() if fate == "used"]
    assert set(received) == {*used, *(batch.batch_id for batch in state.buffer), *(dropped & set(received))}
    totals = {row.candidate_id: row.num_contributions for row in world.brain._registry.candidates()}
    by_candidate: dict[str, int] = {}
    for row in world.brain._registry.batches():
        if row.candidate_id is not None:
            by_candidate[row.candidate_id] = by_candidate.get(row.candidate_id, 0) + row.num_contributions
    assert totals == by_candidate
