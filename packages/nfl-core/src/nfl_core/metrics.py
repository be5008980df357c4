"""Pinned names of metrics, in Prometheus form. A name that is published is never given another meaning.

`DEVICE_COUNTERS` is also the allow-list of what a device may report: numbers under these names and nothing else.
"""

from __future__ import annotations

DEVICE_MICRO_UPDATES = "nfl_device_micro_updates_total"
DEVICE_STEPS = "nfl_device_steps_total"
DEVICE_CONTRIBUTIONS = "nfl_device_contributions_total"
DEVICE_RECEIPTS = "nfl_device_receipts_total"
DEVICE_FETCHES = "nfl_device_fetches_total"
DEVICE_INSTALLS = "nfl_device_installs_total"
DEVICE_MERGES = "nfl_device_merges_total"
DEVICE_MERGES_REFUSED = "nfl_device_merges_refused_total"
DEVICE_PROBATIONS_PASSED = "nfl_device_probations_passed_total"
DEVICE_FALLBACKS = "nfl_device_fallbacks_total"
DEVICE_INFERENCES = "nfl_device_inferences_total"
DEVICE_INFERENCES_GUARDED = "nfl_device_inferences_guarded_total"
DEVICE_RECONNECTS = "nfl_device_reconnects_total"
DEVICE_REFUSALS = "nfl_device_refusals_total"
DEVICE_SENT_BYTES = "nfl_device_sent_bytes_total"
DEVICE_RECEIVED_BYTES = "nfl_device_received_bytes_total"

LEAF_CONTRIBUTIONS = "nfl_leaf_contributions_total"
LEAF_CONTRIBUTIONS_REFUSED = "nfl_leaf_contributions_refused_total"
LEAF_BATCHES = "nfl_leaf_batches_total"
LEAF_ATTACHED_DEVICES = "nfl_leaf_attached_devices"

KEEPER_ANSWERS = "nfl_keeper_answers_total"
KEEPER_REFUSALS = "nfl_keeper_refusals_total"

ROOT_BATCHES = "nfl_root_batches_total"
ROOT_BATCHES_BOUNDED = "nfl_root_batches_bounded_total"
ROOT_CANDIDATES = "nfl_root_candidates_total"
ROOT_CANDIDATES_REFUSED = "nfl_root_candidates_refused_total"
ROOT_VERSIONS = "nfl_root_versions_total"
ROOT_ROLLBACKS = "nfl_root_rollbacks_total"
ROOT_NEWEST_VERSION = "nfl_root_newest_version"
ROOT_VALIDATION_ACCURACY = "nfl_root_validation_accuracy"
ROOT_VALIDATION_SECONDS = "nfl_root_validation_seconds"

NAMES = tuple(sorted(value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)))
DEVICE_COUNTERS = tuple(name for name in NAMES if name.startswith("nfl_device_"))
