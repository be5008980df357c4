from __future__ import annotations

import numpy as np

from nfl_core import metrics

from .world import SHAPE, Fleet, Running


async def test_a_device_fetches_learns_contributes_merges_and_reports(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.open_policy(1, 1)
    device = fleet.device("robot-1")
    running = Running(fleet.agent(device))
    await running.until(lambda: device.events("receipt"))
    assert running.agent.state.base.version == 1
    fleet.publish(2)
    await running.until(lambda: running.agent.state.base.version == 2)
    await running.until(lambda: fleet.leaf.reports and fleet.leaf.reports[-1].installed_version == 2)
    assert fleet.leaf.peers == {"spiffe://home/device/robot-1"}
    assert len(fleet.leaf.bodies) == 1
    assert fleet.leaf.reports[-1].counters[metrics.DEVICE_RECEIPTS] == 1
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
    await running.stop()
