from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest

from nfl_core import metrics
from nfl_core.codec import frame
from nfl_core.errors import NotFoundError, PolicyError, StorageFullError
from nfl_core.learning import MergeReport, Refusal
from nfl_core.wire import device_pb2
from nfl_edge import training
from nfl_edge.agent import Phase
from nfl_edge.errors import UnsafeOutputError
from nfl_edge.link import FileTap
from nfl_edge.models import Models
from nfl_edge.runtime import World
from nfl_edge.store import Store, same_tensors
from nfl_edge.track import load_track
from nfl_ota.bundle import BundleManifest
from nfl_ota.slots import Slots

from .world import SHAPE, Device, Fleet, InProcessLearner, Running, graph, shared_tensors, utc_now, write_samples

X = np.zeros((1, *SHAPE), np.float32)


def nan_graph() -> bytes:
    """Return the graph with logits that are not a number, whatever the weights are."""
    model = onnx.load_from_string(graph())
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "sane"
    nan = onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "not-a-number")
    model.graph.initializer.append(nan)
    model.graph.node.append(onnx.helper.make_node("Mul", ["sane", "not-a-number"], ["logits"]))
    return model.SerializeToString()


def checkpoint_of(device: Device):
    return Store(device.folder.checkpoints, device.folder.state / "checkpoint").current()


async def start(fleet: Fleet, device: Device, **options) -> Running:
    """Run a device until it has learned from version 1."""
    fleet.publish(1)
    running = Running(fleet.agent(device, **options))
    await running.until(lambda: device.events("micro-update"))
    return running


async def test_a_device_fetches_learns_contributes_merges_and_reports(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    fleet.open_policy(1, 1)
    await running.until(lambda: device.events("receipt"))
    assert running.agent.state.base.version == 1
    fleet.publish(2)
    await running.until(lambda: running.agent.state.base.version == 2)
    await running.until(lambda: fleet.leaf.reports and fleet.leaf.reports[-1].installed_version == 2)
    assert fleet.leaf.peers == {"spiffe://home/device/robot-1"}
    assert len(fleet.leaf.bodies) == 1
    assert fleet.leaf.reports[-1].counters[metrics.DEVICE_RECEIPTS] == 1
    assert [report.sequence for report in fleet.leaf.reports] == sorted(
        {report.sequence for report in fleet.leaf.reports}
    )
    assert running.agent.infer(np.zeros((2, *SHAPE), np.float32)).outputs.logits_BK.shape == (2, 10)
    names = [event["event"] for event in device.events()]
    order = [
        "booted",
        "fetched",
        "initialised",
        "probation-passed",
        "installed",
        "micro-update",
        "contributed",
        "receipt",
        "merged",
    ]
    assert [name for name in dict.fromkeys(names) if name in order] == order
    await running.until(lambda: len(device.events("micro-update")) == 2)  # learns from the new base too
    await running.stop()


async def test_the_engine_answers_with_what_was_learned(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    checkpoint = checkpoint_of(device)
    engine = running.agent.guard.active
    first = engine.run(X).logits_BK
    write_samples(device.folder.samples, index=1)  # new samples: the device learns again
    running.agent.wake()
    await running.until(lambda: len(device.events("micro-update")) == 2)
    await running.until(lambda: running.agent.guard.active is not engine)
    assert not np.array_equal(running.agent.infer(X).outputs.logits_BK, first)
    later = checkpoint_of(device)
    assert later.meta.num_updates_here == 2
    assert all((later.accepted[name] == checkpoint.accepted[name]).all() for name in checkpoint.accepted)
    await running.stop()


async def test_a_graph_that_gives_nan_falls_back_within_its_probation(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    before, answer = checkpoint_of(device), running.agent.infer(X).outputs.logits_BK
    fleet.publish(2, graph_bytes=nan_graph())
    await running.until(lambda: device.events("fell-back"))
    await running.until(lambda: running.agent.state.phase is Phase.RESTING)
    after = checkpoint_of(device)
    assert after.to_bytes() == before.to_bytes()  # shared and private tensors, learner and reference
    np.testing.assert_array_equal(running.agent.infer(X).outputs.logits_BK, answer)
    (fell,) = device.events("fell-back")
    assert (fell["version"], fell["to"]) == (2, 1)
    assert "not-finite" in fell["why"]
    assert Slots(device.folder.slots).load().manifest.version == 1
    await running.until(lambda: any(r.counters.get(metrics.DEVICE_FALLBACKS) for r in fleet.leaf.reports))
    hellos = len(fleet.leaf.hellos)
    await running.until(lambda: len(fleet.leaf.hellos) > hellos + 5)
    assert len(device.events("fetched")) == 2  # version 2 is not taken again
    # The same bad content under a new number is not taken either; good content is.
    fleet.publish(3, shared_tensors(2))
    hellos = len(fleet.leaf.hellos)
    await running.until(lambda: len(fleet.leaf.hellos) > hellos + 5)
    assert running.agent.state.base.version == 1
    fleet.publish(4)
    await running.until(lambda: running.agent.state.base.version == 4)
    await running.stop()


async def test_it_falls_back_without_a_network(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    before = checkpoint_of(device)
    fleet.publish(2, graph_bytes=nan_graph())
    learner = InProcessLearner()
    await running.stop()

    class LeafGoesAway(InProcessLearner):
        async def merge(self, request):
            await fleet.leaf.stop()
            return await learner.merge(request)

    running = Running(fleet.agent(device, learner=LeafGoesAway()))
    await running.until(lambda: device.events("fell-back"))
    await running.until(lambda: running.agent.state.phase is not Phase.FALLING_BACK)
    assert checkpoint_of(device).to_bytes() == before.to_bytes()
    assert running.agent.infer(X).outputs.logits_BK.shape == (1, 10)
    await running.stop()


async def test_while_a_bad_version_is_on_probation_the_old_engine_answers(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    agent = running.agent
    answer = agent.infer(X).outputs.logits_BK
    fleet.publish(2, graph_bytes=nan_graph())
    answers = []
    probe = agent._models.probe

    def slow_probe():
        answers.append(agent.infer(X))
        return probe()

    agent._models.probe = slow_probe
    await running.until(lambda: device.events("fell-back"))
    assert answers[0].by_standby
    np.testing.assert_array_equal(answers[0].outputs.logits_BK, answer)
    await running.stop()


async def test_a_first_version_that_fails_leaves_a_device_that_takes_the_next(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    fleet.publish(1, graph_bytes=nan_graph())
    running = Running(fleet.agent(device))
    await running.until(lambda: device.events("fell-back"))
    await running.until(
        lambda: running.agent.state.phase is Phase.RESTING or running.agent.state.phase is Phase.GREETING
    )
    with pytest.raises(UnsafeOutputError):
        running.agent.infer(X)
    fleet.publish(2)
    await running.until(lambda: running.agent.state.base is not None and running.agent.state.base.version == 2)
    assert running.agent.infer(X).outputs.logits_BK.shape == (1, 10)
    assert Slots(device.folder.slots).factory.version == 2
    await running.stop()


async def test_restored_content_is_taken_under_its_new_number(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    before = checkpoint_of(device)
    fleet.publish(2, shared_tensors(1), graph_bytes=nan_graph())  # the running content with a broken graph
    await running.until(lambda: device.events("fell-back"))
    fleet.roll_back(to=1, version=3)
    await running.until(lambda: running.agent.state.base.version == 3)
    assert device.events("merged") == []
    chunks = [path for path, _ in fleet.leaf.fetches if path.startswith("chunks/")]
    assert len(chunks) == len(set(chunks))  # no chunk that is here already is fetched again
    assert checkpoint_of(device).to_bytes() == before.to_bytes()
    assert running.agent.state.quarantined_digests == ()
    await running.until(lambda: fleet.leaf.hellos[-1].installed_version == 3)
    await running.stop()


async def test_a_merge_that_would_hurt_is_refused_and_the_device_keeps_its_model(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    before = checkpoint_of(device)
    poison = {name: np.full_like(value, 3.0) for name, value in shared_tensors(1).items()}
    fleet.publish(2, poison, tolerance=0.0)
    await running.until(lambda: device.events("merge-refused"))
    await running.until(lambda: any(r.counters.get(metrics.DEVICE_MERGES_REFUSED) for r in fleet.leaf.reports))
    assert checkpoint_of(device).to_bytes() == before.to_bytes()
    assert device.events("merge-refused")[0]["refusal"] == "step-length"
    assert running.agent.state.base.version == 1
    hellos = len(fleet.leaf.hellos)
    await running.until(lambda: len(fleet.leaf.hellos) > hellos + 5)
    assert len(device.events("merge-refused")) == 1
    await running.stop()


async def test_a_version_refused_for_the_owners_sake_is_known_after_a_restart(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    before = checkpoint_of(device)
    same = {"loss_before": 1.0, "loss_after": 1.0, "accuracy_before": 0.5, "accuracy_after": 0.5, "shock": 0.1}
    report = MergeReport(accepted=False, alpha=0.0, refit_steps=0, num_trials=4, refusal=Refusal.HOLDOUT, **same)
    monkeypatch.setattr(training, "merge", lambda *_, **__: report)
    fleet.publish(2)
    await running.until(lambda: device.events("merge-refused"))
    await running.stop()
    after = checkpoint_of(device)
    assert (after.meta, after.tensors.keys()) == (before.meta, before.tensors.keys())
    assert same_tensors(after.tensors, before.tensors)
    track = load_track(after.track, after.track_text, accepted=after.accepted)
    assert track is not None
    assert (track.version, len(track.lengths)) == (2, 1)
    assert device.events("merge-refused")[0]["refusal"] == "holdout"


async def test_killed_between_seal_and_send_it_sends_the_same_bytes(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    await fleet.leaf.stop()
    fleet.open_policy(1, 1)
    await fleet.leaf.start()
    await running.until(lambda: fleet.leaf.hellos)
    fleet.leaf.refuse = NotFoundError("the leaf is not ready")  # it answers, and takes nothing yet
    await running.until(lambda: fleet.leaf.bodies)
    await running.kill()
    sealed = list(device.folder.outbox.glob("*.frame"))
    assert len(sealed) == 1
    body = sealed[0].read_bytes()
    fleet.leaf.refuse = None
    running = Running(fleet.agent(device))
    await running.until(lambda: device.events("receipt"))
    assert set(fleet.leaf.bodies) == {body}
    assert len(device.events("contributed")) == 1
    assert list(device.folder.outbox.glob("*.frame")) == []
    await running.stop()


async def test_killed_between_gate_and_outbox_it_seals_the_same_bytes(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    agent = running.agent
    put, bodies = agent._outbox.put, []

    def die(entry):
        bodies.append(entry.body)
        raise asyncio.CancelledError

    agent._outbox.put = die
    fleet.open_policy(1, 1)
    await running.until(lambda: bodies or running.task.done())
    await running.kill()
    assert put is not die
    running = Running(fleet.agent(device))
    await running.until(lambda: device.events("receipt"))
    assert fleet.leaf.bodies == bodies
    await running.stop()


@pytest.mark.parametrize("forgery", ["other-leaf", "device", "other-bytes", "garbage"])
async def test_a_forged_receipt_is_not_accepted(fleet: Fleet, forgery: str) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    if forgery == "other-leaf":
        fleet.leaf.receipt_signer = fleet.other_leaf
    elif forgery == "device":
        fleet.leaf.receipt_signer = device.principal
    elif forgery == "other-bytes":
        fleet.leaf.receipt_sha256 = "0" * 64
    else:
        fleet.leaf.receipt_signer = _Garbage()
    fleet.open_policy(1, 1)
    await running.until(lambda: len(device.events("receipt-refused")) >= 2)
    assert device.events("receipt") == []
    assert len(list(device.folder.outbox.glob("*.frame"))) == 1
    fleet.leaf.receipt_signer = fleet.leaf.receipt_sha256 = None
    await running.until(lambda: device.events("receipt"))
    assert len(set(fleet.leaf.bodies)) == 1
    await running.stop()


class _Garbage:
    def sign(self, kind: str, payload: bytes) -> bytes:
        return b"garbage" + payload


async def test_what_the_leaf_refuses_for_good_is_dropped_and_told(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    fleet.leaf.refuse = PolicyError("policy 1 is closed")
    fleet.open_policy(1, 1)
    await running.until(lambda: device.events("contribution-refused"))
    assert list(device.folder.outbox.glob("*.frame")) == []
    fleet.leaf.refuse = None
    fleet.open_policy(2, 1)
    await running.until(lambda: device.events("receipt"))
    await running.stop()


async def test_a_leaf_that_is_away_does_not_stop_learning_and_inferring(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    await fleet.leaf.stop()
    write_samples(device.folder.samples, index=1)
    await running.until(lambda: len(device.events("micro-update")) == 2)
    assert running.agent.infer(X).outputs.logits_BK.shape == (1, 10)
    await running.until(lambda: device.events("leaf-away"))
    fleet.publish(2)
    await fleet.leaf.start()
    await running.until(lambda: running.agent.state.base.version == 2)
    assert len(device.events("linked")) == 2
    await running.stop()


async def test_a_device_starts_and_infers_without_a_leaf(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    answer = running.agent.infer(X).outputs.logits_BK
    await running.stop()
    await fleet.leaf.stop()
    running = Running(fleet.agent(device))
    await asyncio.wait_for(running.agent.booted.wait(), 10)
    np.testing.assert_array_equal(running.agent.infer(X).outputs.logits_BK, answer)
    assert len(device.events("micro-update")) == 1  # and does not learn the same twice
    await running.stop()


@pytest.mark.parametrize("phase", ["merge", "activate", "probe", "confirm"])
async def test_killed_at_any_step_of_an_update_it_ends_with_the_new_version(fleet: Fleet, phase: str) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    agent, reached = running.agent, []

    def die(*args, **kwargs):
        reached.append(phase)
        raise asyncio.CancelledError

    setattr(agent._models, phase, die)
    fleet.publish(2)
    await running.until(lambda: reached or running.task.done())
    await running.kill()
    assert agent.state.base.version == 1
    running = Running(fleet.agent(device))
    await running.until(lambda: running.agent.state.base is not None and running.agent.state.base.version == 2)
    assert running.agent.state.quarantined_versions == ()
    assert checkpoint_of(device).meta.base_version == 2
    await running.stop()


async def test_killed_after_each_half_of_an_activation_it_ends_with_the_new_version(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    agent = running.agent
    commit = agent._models._store.commit

    def die(name: str) -> None:
        commit(name)
        raise asyncio.CancelledError

    agent._models._store.commit = die
    fleet.publish(2)
    await running.until(lambda: checkpoint_of(device).meta.base_version == 2 or running.task.done())
    await running.kill()
    running = Running(fleet.agent(device))
    await running.until(lambda: running.agent.state.base is not None and running.agent.state.base.version == 2)
    # The accuracy before was still measured with the engine from before.
    assert device.events("probation-passed")[-1]["reference"] >= 0
    await running.stop()


async def test_killed_in_every_probation_it_falls_back_by_itself(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    before, deaths = checkpoint_of(device), []

    def die(self):
        deaths.append(1)
        raise asyncio.CancelledError

    monkeypatch.setattr(Models, "probe", die)
    fleet.publish(2)
    while not device.events("fell-back"):
        task = running.task
        await running.until(lambda task=task: task.done() or device.events("fell-back"))
        if running.task.done():
            await running.kill()
            running = Running(fleet.agent(device))
    await running.until(lambda: running.agent.state.linked)
    assert device.events("fell-back")[0]["why"] == "boot-limit"
    assert len(deaths) == 1 + device.settings.settings.edge.max_tries
    assert checkpoint_of(device).to_bytes() == before.to_bytes()
    assert running.agent.state.quarantined_versions == (2,)
    await running.stop()


@pytest.mark.parametrize("what", ["manifest", "chunk", "offer"])
async def test_a_bundle_that_is_not_what_was_signed_is_refused(fleet: Fleet, what: str) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    good = fleet.leaf.newest
    fleet.publish(2)
    offered = fleet.leaf.newest
    manifest = fleet.manifests[2]
    if what == "offer":
        fleet.leaf.newest = (2, offered[1], good[2][::-1])
    else:
        fleet.leaf.newest = good
        name = f"chunks/{manifest.tensors[0].sha256}" if what == "chunk" else _target(fleet, manifest)
        path = fleet.home / "mirror" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        fleet.leaf.newest = offered
    await running.until(lambda: len(device.events("bundle-refused")) >= 2)
    assert running.agent.state.base.version == 1
    assert running.agent.state.quarantined_versions == ()  # the cache is to blame, not the version
    assert Slots(device.folder.slots).load().manifest.version == 1
    await running.stop()


def _target(fleet: Fleet, manifest: BundleManifest) -> str:
    (found,) = (fleet.home / "mirror" / "targets").rglob(f"*.{manifest.version}.json")
    return str(found.relative_to(fleet.home / "mirror"))


async def test_expired_metadata_are_refused(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    fleet.publish(1)
    world = World(now=lambda: utc_now() + timedelta(days=60))
    running = Running(fleet.agent(device, world=world))
    await running.until(lambda: device.events("bundle-refused"))
    assert device.events("bundle-refused")[0]["code"] == "verification.expired"
    assert running.agent.state.base is None
    await running.stop()


async def test_a_policy_that_is_not_to_be_obeyed_is_ignored_once(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    policy = fleet.open_policy(1, 1)
    fleet.leaf.policy = replace(policy, signed=policy.signed[:-1] + bytes([policy.signed[-1] ^ 1]))
    await running.until(lambda: device.events("policy-refused"))
    hellos = len(fleet.leaf.hellos)
    await running.until(lambda: len(fleet.leaf.hellos) > hellos + 5)
    assert len(device.events("policy-refused")) == 1
    assert device.events("contributed") == []
    fleet.leaf.policy = policy
    await running.until(lambda: device.events("receipt"))
    await running.stop()


async def test_a_full_disk_during_install_leaves_the_old_slot_running(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    full = [True]
    install = Slots.install

    def refuse(self, bundle):
        if full[0]:
            raise StorageFullError("cannot write slot-b: No space left on device")
        return install(self, bundle)

    monkeypatch.setattr(Slots, "install", refuse)
    fleet.publish(2)
    await running.until(lambda: len(device.events("install-refused")) >= 2)
    assert device.events("install-refused")[0]["code"] == "durable.disk-full"
    assert running.agent.infer(X).outputs.logits_BK.shape == (1, 10)
    full[0] = False
    await running.until(lambda: running.agent.state.base.version == 2)
    await running.stop()


async def test_no_private_value_and_no_pixel_leaves_the_device(fleet: Fleet, tmp_path: Path) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device, tap=FileTap(tmp_path / "tap"))
    fleet.open_policy(1, 1)
    await running.until(lambda: device.events("receipt"))
    await running.until(lambda: fleet.leaf.reports)
    await running.stop()
    sent = (tmp_path / "tap").read_bytes() + b"".join(fleet.leaf.bodies)
    (body,) = fleet.leaf.bodies
    assert body in sent  # the control: what was sent is in what we search
    message = device_pb2.Contribution.FromString(frame.decode(body, max_bytes=1 << 20)[1])
    assert message.masked in sent
    checkpoint = checkpoint_of(device)
    private = {name: value for name, value in checkpoint.tensors.items() if name not in checkpoint.accepted}
    assert private
    words = {value.tobytes() for array in private.values() for value in array.ravel() if value != 0}
    assert len(words) > 100
    quads = {sent[index : index + 4] for index in range(len(sent) - 3)}
    # A few four-byte words meet by chance: about len(sent) / 2**32 a word.
    assert len(words & quads) <= 2
    rows = device.folder.samples.read_bytes()[-12 * 12 * 10 :]
    assert not any(
        rows[start : start + 12] in sent for start in range(0, len(rows), 12) if any(rows[start : start + 12])
    )
    for request in fleet.leaf.reports:
        assert set(request.counters) <= set(metrics.DEVICE_COUNTERS)


async def test_the_integers_that_enter_the_mask_are_of_shared_values_alone(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    seen = []

    def tap(contribution_id, *, counts_P, weight):
        seen.append((contribution_id, len(counts_P), weight))

    running = await start(fleet, device, world=World(egress_tap=tap))
    policy = fleet.open_policy(1, 1)
    await running.until(lambda: device.events("receipt"))
    assert seen == [(device.events("contributed")[0]["contribution"], policy.num_values - 1, 1)]
    await running.stop()


async def test_a_device_outside_the_wave_answers_once_from_its_old_base(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    running = await start(fleet, device)
    fleet.open_policy(1, 1)
    await running.until(lambda: device.events("receipt"))
    old = fleet.leaf.newest
    fleet.publish(2)
    fleet.leaf.newest = old  # the leaf still offers version 1 to this device, and says that it is the newest
    fleet.open_policy(2, 1, 2)
    hellos = len(fleet.leaf.hellos)
    await running.until(lambda: len(fleet.leaf.hellos) > hellos + 10)
    assert len(device.events("contributed")) == 1
    fleet.assign(fleet.manifests[2])
    await running.until(lambda: len(device.events("receipt")) == 2)
    assert [event["version"] for event in device.events("contributed")] == [1, 2]
    await running.stop()
