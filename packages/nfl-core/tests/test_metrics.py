from __future__ import annotations

import re

from nfl_core import metrics

# Names are stable: dashboards and alerts use them. An entry is never changed, only added.
NAMES = (
    "nfl_device_contributions_total",
    "nfl_device_fallbacks_total",
    "nfl_device_fetches_total",
    "nfl_device_inferences_guarded_total",
    "nfl_device_inferences_total",
    "nfl_device_installs_total",
    "nfl_device_merges_refused_total",
    "nfl_device_merges_total",
    "nfl_device_micro_updates_total",
    "nfl_device_probations_passed_total",
    "nfl_device_receipts_total",
    "nfl_device_received_bytes_total",
    "nfl_device_reconnects_total",
    "nfl_device_refusals_total",
    "nfl_device_sent_bytes_total",
    "nfl_device_steps_total",
    "nfl_keeper_answers_total",
    "nfl_keeper_refusals_total",
    "nfl_leaf_attached_devices",
    "nfl_leaf_batches_total",
    "nfl_leaf_contributions_refused_total",
    "nfl_leaf_contributions_total",
    "nfl_root_batches_bounded_total",
    "nfl_root_batches_total",
    "nfl_root_candidates_refused_total",
    "nfl_root_candidates_total",
    "nfl_root_newest_version",
    "nfl_root_rollbacks_total",
    "nfl_root_validation_accuracy",
    "nfl_root_validation_seconds",
    "nfl_root_versions_total",
)


def test_names_are_pinned() -> None:
    assert metrics.NAMES == NAMES


def test_names_keep_the_form_of_prometheus() -> None:
    for name in metrics.NAMES:
        assert re.fullmatch(r"nfl_(device|leaf|keeper|root)_[a-z_]+", name)
        assert not name.endswith(("_s", "_ms"))  # Prometheus wants base units, spelt out


def test_devices_report_counters_alone() -> None:
    assert metrics.DEVICE_COUNTERS
    assert all(name.startswith("nfl_device_") and name.endswith("_total") for name in metrics.DEVICE_COUNTERS)
