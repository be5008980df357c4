"""The leaves that over-the-air updates add to the error tree of `nfl_core.errors`.

```
VerificationError
+-- ManifestError                     7  bundle.manifest      a manifest that breaks its own rules
+-- MetadataError                     7  bundle.metadata      signed metadata that cannot be read or do not fit together
PolicyError
+-- GateError                         7  bundle.gate          a bundle whose gates did not pass, without an override
ConflictError
+-- PublishError                      8  publish.conflict     a version that cannot be published as asked
+-- SlotBusyError                     8  slots.busy           the slots are not in a state for this step
+-- QuarantinedError                  8  slots.quarantined    a version that failed on this device before
+-- RolloutError                      8  rollout.conflict     an event that the rollout's state has no place for
DurableError
+-- NoBootableSlotError               1  slots.none-bootable  no slot holds what it should
```
"""

from __future__ import annotations

from nfl_core.errors import ConflictError, DurableError, PolicyError, VerificationError


class ManifestError(VerificationError):
    """A manifest breaks its own rules."""

    code = "bundle.manifest"


class MetadataError(VerificationError):
    """Signed metadata cannot be read, or files of different states were mixed."""

    code = "bundle.metadata"
    hint = "fetch again; if it fails twice, the cache that serves the metadata is damaged or hostile"


class GateError(PolicyError):
    """A bundle did not pass its gates and nobody overrode them."""

    code = "bundle.gate"
    hint = "keep the candidate back, or publish it with an override that says why"


class PublishError(ConflictError):
    """A version cannot be published as asked."""

    code = "publish.conflict"
    hint = "publish under a number above every published one"


class SlotBusyError(ConflictError):
    """The slots are not in a state for this step."""

    code = "slots.busy"
    hint = "confirm or fall back from the version on probation first"


class QuarantinedError(ConflictError):
    """A version failed on this device before and is not taken again."""

    code = "slots.quarantined"
    hint = "wait for a newer version"


class NoBootableSlotError(DurableError):
    """No slot holds what it should."""

    code = "slots.none-bootable"
    hint = "bring the device to a safe stop; install a version, or provision its factory image again"


class RolloutError(ConflictError):
    """An event arrived that the rollout's state has no place for."""

    code = "rollout.conflict"
    hint = "look at the state of the rollout and decide again"
