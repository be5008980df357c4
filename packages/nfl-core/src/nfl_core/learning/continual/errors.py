"""What can go wrong when a device learns from a stream.

```
LearningError
+-- ReplayMismatchError     replay.mismatch     a buffer belongs to another model
+-- StreamRefusedError      stream.refused      a batch must not be learned from
ConfigError
+-- MissingExtraError       extra.missing       an optional library is not installed
```
"""

from __future__ import annotations

from nfl_core.errors import ConfigError, LearningError


class ReplayMismatchError(LearningError):
    """A replay buffer belongs to a model of another schema, or its state cannot be read."""

    code = "replay.mismatch"
    hint = "start an empty buffer: what the old one holds does not fit this model"


class StreamRefusedError(LearningError):
    """A batch of the stream is empty, not finite or not of this model; nothing was learned from it."""

    code = "stream.refused"
    hint = "check the sensor and the labels; model, clocks and replay buffer are as before the batch"


class MissingExtraError(ConfigError):
    """A library that an option needs is not installed."""

    code = "extra.missing"
    hint = "install it with `pip install 'nfl-core[drift]'`, or turn the option off"
