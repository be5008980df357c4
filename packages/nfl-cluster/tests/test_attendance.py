"""What a leaf makes of its devices: who runs a version, who fell back from it, who belongs to a wave."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfl_cluster.attendance import MAX_COUNTER, Attendance
from nfl_core import metrics
from nfl_core.errors import MalformedError
from nfl_core.ids import DeviceId, LeafId, RegionId
from nfl_core.wire import device_pb2, sites_pb2

ROBOT, OTHER = DeviceId("robot-1"), DeviceId("robot-2")
SAME = "5" * 64


@pytest.fixture
def attendance(tmp_path: Path) -> Attendance:
    return Attendance(tmp_path / "devices", leaf=LeafId("leaf-1"), region=RegionId("north"))


def follow(attendance: Attendance, version: int, *, fraction: float = 1.0, digest: str = SAME) -> None:
    rollout = sites_pb2.RolloutState(
        version=version,
        region="north",
        bundle_target=f"bundles/north/{version}.json",
        digest=digest,
        wave_fraction=fraction,
        previous_target=f"bundles/north/{version - 1}.json",
        previous_version=version - 1,
        previous_digest=SAME,
    )
    assert attendance.follow(rollout, message_id=f"rollout-{version:06d}-{fraction}")


def hello(attendance: Attendance, device: DeviceId, version: int) -> int:
    request = device_pb2.HelloRequest(installed_version=version, installed_digest=SAME)
    return attendance.hello(device, request, is_served=True).version


def report(
    attendance: Attendance, device: DeviceId, sequence: int, *, version: int, fallbacks: int = 0, refusals: int = 0
) -> None:
    counters = {metrics.DEVICE_FALLBACKS: fallbacks, metrics.DEVICE_MERGES_REFUSED: refusals}
    attendance.report(device, device_pb2.ReportRequest(sequence=sequence, installed_version=version, counters=counters))


def counts(attendance: Attendance) -> sites_pb2.HealthCounts:
    news = attendance.news(with_counters=True)
    assert news is not None
    return news[1]


def test_the_same_tensors_in_another_bundle_are_not_healthy_before_they_run(attendance: Attendance) -> None:
    """A bundle whose graph fails may hold the very tensors that run already."""
    follow(attendance, 1)
    hello(attendance, ROBOT, 1)
    follow(attendance, 2)
    assert hello(attendance, ROBOT, 1) == 2
    found = counts(attendance)
    assert (found.attached, found.installed, found.healthy) == (1, 0, 0)
    hello(attendance, ROBOT, 2)
    found = counts(attendance)
    assert (found.installed, found.healthy) == (1, 1)


def test_a_fallback_counts_against_the_version_it_was_told_under(attendance: Attendance) -> None:
    follow(attendance, 2)
    hello(attendance, ROBOT, 1)
    report(attendance, ROBOT, 1, version=1, fallbacks=1)
    assert counts(attendance).fallen_back == 1
    follow(attendance, 3)
    hello(attendance, ROBOT, 1)
    hello(attendance, ROBOT, 3)
    found = counts(attendance)
    assert (found.fallen_back, found.healthy) == (0, 1)


def test_a_device_that_is_heard_of_by_its_report_belongs_to_the_open_wave(attendance: Attendance) -> None:
    follow(attendance, 2)
    assert hello(attendance, ROBOT, 1) == 2
    report(attendance, OTHER, 1, version=1)
    assert hello(attendance, OTHER, 1) == 2
    assert counts(attendance).attached == 2


def test_who_refused_content_has_answered_when_it_comes_back(attendance: Attendance, tmp_path: Path) -> None:
    """After a rollback the older content goes out under a new number; whoever refused it once stays silent about it."""
    refused, bad = "6" * 64, "7" * 64
    follow(attendance, 2, digest=refused)
    hello(attendance, ROBOT, 1)
    report(attendance, ROBOT, 1, version=1, refusals=1)
    assert counts(attendance).merge_refused == 1
    follow(attendance, 3, digest=bad)
    hello(attendance, ROBOT, 1)
    assert counts(attendance).merge_refused == 0
    follow(attendance, 4, digest=refused)
    hello(attendance, ROBOT, 1)
    found = counts(attendance)
    assert (found.merge_refused, found.healthy, found.installed) == (1, 0, 0)
    again = Attendance(tmp_path / "devices", leaf=LeafId("leaf-1"), region=RegionId("north"))
    assert counts(again).merge_refused == 1


def test_devices_that_report_huge_counters_cannot_stop_their_leaf(attendance: Attendance) -> None:
    """The leaf sums what all devices report; the sum of the largest must fit the message to the root."""
    follow(attendance, 1)
    largest = {metrics.DEVICE_STEPS: MAX_COUNTER}
    for number in range(20):
        device = DeviceId(f"robot-{number}")
        hello(attendance, device, 1)
        attendance.report(device, device_pb2.ReportRequest(sequence=1, installed_version=1, counters=largest))
    assert counts(attendance).counters[metrics.DEVICE_STEPS] == 20 * MAX_COUNTER
    assert 1_000_000 * MAX_COUNTER < 2**63
    over = device_pb2.ReportRequest(sequence=2, installed_version=1, counters={metrics.DEVICE_STEPS: MAX_COUNTER + 1})
    with pytest.raises(MalformedError, match="expected 0 to"):
        attendance.report(ROBOT, over)
