"""Errors of the device, leaves of the tree in `nfl_core.errors`.

```
NflError
+-- AgentInvariantError                  agent.invariant
+-- ConfigError      DeviceFolderError   device.folder
+-- ConflictError    DeviceBusyError     device.busy
+-- MalformedError   SamplesError        samples.invalid
+-- LearningError    EngineError         inference.engine
|                    UnsafeOutputError   inference.unsafe
|                    TrainerError        trainer.failed
+-- SignatureError   ReceiptError        receipt.forged
```
"""

from __future__ import annotations

from nfl_core.errors import (
    ConfigError,
    ConflictError,
    LearningError,
    MalformedError,
    NflError,
    SignatureError,
)


class AgentInvariantError(NflError):
    """The agent contradicts itself; the host starts it again from its durable state."""

    code = "agent.invariant"
    hint = "report this: it is a fault of the program; the agent goes on from its durable state"


class DeviceFolderError(ConfigError):
    """A folder does not hold an enrolled device."""

    code = "device.folder"
    hint = "enrol the device first: nfl device enrol --token TOKEN --root HOST:PORT --ca ca.pem DIR"


class DeviceBusyError(ConflictError):
    """Another process runs the device."""

    code = "device.busy"
    hint = "stop the other `nfl device run`; two agents in one folder would destroy its state"


class SamplesError(MalformedError):
    """The samples of a device cannot be learned from."""

    code = "samples.invalid"
    hint = (
        "write samples.safetensors with train.x uint8 or float32 [N,C,H,W], train.y int64 [N], "
        "and the same for holdout and test"
    )


class EngineError(LearningError):
    """A graph cannot be run, or tensors do not fit it."""

    code = "inference.engine"
    hint = "the device keeps its last good engine; report the version that brought this graph"


class UnsafeOutputError(LearningError):
    """An inference gave an output that nobody must act on."""

    code = "inference.unsafe"
    hint = "act as if there were no output (safe stop); the agent falls back by itself when the version is to blame"


class TrainerError(LearningError):
    """The trainer process refused or could not finish a request."""

    code = "trainer.failed"
    hint = "read the trainer's log on stderr; the last committed checkpoint is still in place"


class ReceiptError(SignatureError):
    """A receipt is not this leaf's, or not for what was sent."""

    code = "receipt.forged"
    hint = "the contribution stays in the outbox and is sent again; find out who answers at the leaf's address"
