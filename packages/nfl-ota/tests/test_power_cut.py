"""A small part of the power-cut campaign (`nox -s campaign -- power-cut`), and its controls."""

from __future__ import annotations

import json
import logging

import pytest


@pytest.fixture(autouse=True)
def quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_a_device_boots_right_after_a_cut_at_any_point(campaign):
    cases, violations = campaign.check(campaign.Device, campaign.SimulatedDisk, 600, stride=7)
    assert cases >= 600
    assert violations == []


@pytest.mark.parametrize("name", ["naive writer", "disk that ignores sync", "disk that ignores sync of folders"])
def test_the_campaign_catches_what_is_wrong_on_purpose(campaign, name):
    kind, make_disk = campaign.CONTROLS[name]
    cases, violations = campaign.check(kind, make_disk, 0, stride=4)
    assert len(violations) >= (0.05 * cases if name == "naive writer" else 1)


@pytest.mark.parametrize("name", ["naive writer", "disk that ignores sync", "disk that ignores sync of folders"])
def test_the_controls_are_right_while_the_power_stays_on(campaign, name):
    """Else they would be caught for a fault that has nothing to do with power."""
    kind, make_disk = campaign.CONTROLS[name]
    for disk, *truth in campaign.record(kind, make_disk()).points[-1:]:
        assert campaign.violation(kind, disk.copy(), (disk, *truth)) is None


def test_the_campaign_says_what_it_found(campaign, monkeypatch, capsys):
    monkeypatch.setattr(
        campaign, "check", lambda kind, *_args, **_options: (7, [] if kind is campaign.Device else ["bricked"])
    )
    campaign.main(7)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(result.pop("seconds"), float)
    assert result == {"campaign": "power-cut", "cases": 7, "violations": 0, "controls": 3, "controls_caught": 3}


@pytest.mark.parametrize("broken", ["Device", "NaiveDevice"])
def test_the_campaign_fails_on_a_violation_or_an_uncaught_control(campaign, monkeypatch, broken):
    def check(kind, *_args, **_options):
        faulty = {"Device", "PatientDevice", "NaiveDevice"} if broken == "Device" else {"PatientDevice"}
        return 7, ["bricked"] if kind.__name__ in faulty else []

    monkeypatch.setattr(campaign, "check", check)
    with pytest.raises(SystemExit):
        campaign.main(7)
