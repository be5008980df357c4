"""Learning from streams on the device: remember, notice, recall, refuse.

    buffer = ReplayBuffer(max_bytes=262_144, input_shape=(1, 28, 28), num_classes=10, identity=identity, salt=seed)
    stream = ContinualLearner(learner, replay=buffer, drift=DriftWatch(), shelf=RecallShelf())
    report = stream.observe(x, y)

Nothing of this leaves the device. Drift detection needs `pip install 'nfl-core[drift]'`.
"""

from __future__ import annotations

from nfl_core.learning.continual.augment import Augment, shift, shift_and_flip
from nfl_core.learning.continual.average import SlowAverage
from nfl_core.learning.continual.drift import Drift, DriftSettings, DriftWatch, Monitor, Response, decide
from nfl_core.learning.continual.errors import MissingExtraError, ReplayMismatchError, StreamRefusedError
from nfl_core.learning.continual.gates import Admission, judge
from nfl_core.learning.continual.recall import RecallReport, RecallShelf, Signature, private_state, signature_of
from nfl_core.learning.continual.rehearsal import Rehearsal, RehearsalSettings, Sight, mix_priors
from nfl_core.learning.continual.replay import ModelIdentity, ReplayBatch, ReplayBuffer, ReplayState, bytes_for
from nfl_core.learning.continual.stream import ContinualLearner, StreamReport, StreamSettings, StreamState

__all__ = [
    "Admission",
    "Augment",
    "ContinualLearner",
    "Drift",
    "DriftSettings",
    "DriftWatch",
    "MissingExtraError",
    "ModelIdentity",
    "Monitor",
    "RecallReport",
    "RecallShelf",
    "Rehearsal",
    "RehearsalSettings",
    "ReplayBatch",
    "ReplayBuffer",
    "ReplayMismatchError",
    "ReplayState",
    "Response",
    "Sight",
    "Signature",
    "SlowAverage",
    "StreamRefusedError",
    "StreamReport",
    "StreamSettings",
    "StreamState",
    "bytes_for",
    "decide",
    "judge",
    "mix_priors",
    "private_state",
    "shift",
    "shift_and_flip",
    "signature_of",
]
