"""End to end on a small fleet: every arrow of the picture, an attack, a bad version, a killed leaf, and the proof."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nfl_cluster.registry import Registry
from nfl_ota import Repository

if TYPE_CHECKING:
    from tests.conftest import Played


def device_events(played: Played, device: str, name: str) -> list[dict[str, object]]:
    lines = (played.fleet.home / "devices" / device / "journal/events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_versions_pass_gates_and_waves(played: Played) -> None:
    view = played.fleet.watch.state
    learned = [v for v in view.published if v > 1 and v not in view.overridden]
    assert len(learned) >= 3
    waves = played.fleet.root_events("wave-opened")
    for version in learned[:-1]:
        assert [wave["fraction"] for wave in waves if wave["version"] == version] == [0.34, 1.0]


def test_devices_merge_what_others_learned_and_keep_their_own(played: Played) -> None:
    for device in played.fleet.devices:
        merged = device_events(played, device, "merged")
        assert merged, device
        assert all(0 < float(str(event["alpha"])) <= 1 for event in merged)
    view = played.fleet.watch.state
    assert min(view.accuracies()) > 0.5  # ten classes: a tenth is chance


def test_candidates_of_the_fleet_get_better(played: Played) -> None:
    accuracies = [event["accuracy"] for event in played.fleet.root_events("published") if event["accuracy"]]
    first, last = (min(map(float, step.values())) for step in (accuracies[0], accuracies[-1]))  # type: ignore[union-attr]
    assert last > first + 0.2


def test_the_root_s_sums_are_what_devices_put_in(played: Played) -> None:
    assert played.proof.batches >= 8
    assert played.proof.batches_exact == played.proof.batches
    assert played.proof.contributions_twice == 0


def test_nothing_private_was_sent_and_the_search_would_have_seen_it(played: Played) -> None:
    assert played.proof.private_values > 10_000
    assert played.proof.pixel_rows > 1_000
    assert played.proof.found == 0
    assert played.proof.control_found == played.proof.control_planted == 12


def test_a_killed_leaf_loses_and_doubles_nothing(played: Played) -> None:
    proof = played.proof
    assert proof.receipts_unaccounted == 0
    assert proof.receipts == proof.receipts_counted + proof.receipts_dropped + proof.receipts_waiting
    assert proof.holds


def test_canaries_fall_back_by_themselves_and_the_root_rolls_back(played: Played) -> None:
    view = played.fleet.watch.state
    (bad,) = view.overridden
    assert view.rolled_back == [bad]
    waves = [event["fraction"] for event in played.fleet.root_events("wave-opened") if event["version"] == bad]
    assert waves == [0.34], "the broken version left its first wave"
    fallen = [name for name in played.fleet.devices if device_events(played, name, "fell-back")]
    assert 1 <= len(fallen) < len(played.fleet.devices)
    for name in fallen:
        (event,) = device_events(played, name, "fell-back")
        assert "not-finite" in str(event["why"])
        assert event["version"] == bad
    assert view.restoring[0] in view.complete


def test_what_a_poisoned_region_made_is_refused_by_a_gate(played: Played) -> None:
    refused = played.fleet.watch.state.refused
    assert refused
    # Attackers of one region pull the global levels too, so the gate of either region may be the one that shuts.
    assert {gate for _, gate, _ in refused} <= {"accuracy-region-1", "accuracy-region-2"}
    registry = Registry.open(played.fleet.home / "root/registry.sqlite")
    try:
        rows = {row.candidate_id: row for row in registry.candidates()}
        versions = registry.versions()
    finally:
        registry.close()
    for candidate, _, _ in refused:
        assert rows[candidate].status == "refused"
        assert not any(version.candidate_id == candidate for version in versions)


def test_lineage_tells_where_a_version_comes_from(played: Played) -> None:
    registry = Registry.open(played.fleet.home / "root/registry.sqlite")
    try:
        newest = max(row.version for row in registry.versions())
        line = [row.version for row in registry.lineage(newest)]
        overridden = [row for row in registry.versions() if row.override_reason]
    finally:
        registry.close()
    assert line[0] == newest
    assert line[-1] == 1
    assert not set(line) & set(played.fleet.watch.state.rolled_back)
    assert [row.override_reason for row in overridden] == ["the test lets it through"]


@pytest.mark.parametrize("leaf", ["leaf-1", "leaf-2"])
def test_leaf_caches_hold_what_the_root_signed(played: Played, leaf: str) -> None:
    root = played.fleet.folder("root")
    repository = Repository.open(root.repository, root.tuf_keys, lambda: pytest.fail("no clock is needed to read"))
    files = dict(repository.files_since(0))
    cache = played.fleet.folder(leaf).cache
    targets = [path for path in files if path.startswith("chunks/")]
    assert targets
    assert all((cache / path).read_bytes() == files[path] for path in targets if (cache / path).exists())


def test_every_device_has_its_own_keys_and_certificate(played: Played) -> None:
    folders = [played.fleet.home / "devices" / name / "keys" for name in played.fleet.devices]
    for name in ("tls.key", "sign.key", "tls.crt", "sign.crt"):
        assert len({(folder / name).read_bytes() for folder in folders}) == len(folders)
        assert name.endswith(".crt") or all((folder / name).stat().st_mode & 0o077 == 0 for folder in folders)


def test_a_contribution_is_far_smaller_than_the_shared_levels(played: Played) -> None:
    sizes = {
        int(str(event["bytes"])) for name in played.fleet.devices for event in device_events(played, name, "receipt")
    }
    num_shared = 47_000  # of the reference model, about
    assert max(sizes) < 4 * num_shared / 4
