"""The one tree of errors, and the table of exit codes.

Every error of every package derives from `NflError` and says three things apart from its message: a stable `code` for
programs, a `hint` for the person who reads it, and the `exit_code` of a command that ends with it.

```
NflError
+-- ConfigError                       3  config.invalid
|   +-- SpecError                        spec.invalid
|   +-- SchemaError                      schema.invalid
+-- MalformedError                    7  data.malformed      bytes or values that are not what they claim to be
|   +-- DeltaError                       delta.invalid
|   +-- FrameError                       frame.malformed
|   +-- TensorFileError                  tensors.malformed
+-- DurableError                      1  durable.corrupt
|   +-- StorageFullError                 durable.disk-full
+-- TransportError                    6  transport.failed
|   +-- UnreachableError                 transport.unreachable
|   +-- PortInUseError                   transport.port-in-use
+-- VerificationError                 7  verification.failed
|   +-- IdentityError                    identity.invalid
|   +-- SignatureError                   signature.invalid
|   +-- RollbackError                    bundle.rollback
|   +-- ExpiredError                     verification.expired
|   +-- ContentError                     content.mismatch
|   +-- PolicyError                      policy.violated
+-- EgressError                       7  egress.refused
+-- AuthorisationError                5  authorisation.denied
+-- NotFoundError                     4  not-found
+-- ConflictError                     8  conflict
|   +-- DuplicateContributionError       contribution.duplicate
+-- LearningError                     1  learning.failed
|   +-- MergeRefusedError                learning.merge-refused
+-- ProcessDiedError                  1  process.died
```

Packages add leaves to this tree; nobody raises a bare `NflError`. A message says what, got and expected:

    >>> raise RollbackError("bundle version 3 is older than installed 5")
    Traceback (most recent call last):
    ...
    nfl_core.errors.RollbackError: bundle version 3 is older than installed 5
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the exit code of `nfl` means. All are below 126, so no shell changes their meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    NOT_FOUND = 4
    NOT_PERMITTED = 5
    UNREACHABLE = 6
    VERIFICATION = 7
    CONFLICT = 8
    PARTLY = 9
    INTERRUPTED = 130  # 128 + SIGINT, what shells expect


class NflError(Exception):
    """Root of all errors of the product.

    Args:
        message: What happened: what, got, expected. One line.
        hint: What the reader does next; without it the hint of the class stands.
    """

    code: ClassVar[str] = "nfl"
    exit_code: ClassVar[int] = ExitCode.FAILED
    hint: str = "run the command again with --debug and report what it prints"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint

    @property
    def message(self) -> str:
        """The message alone, without code and hint."""
        return str(self.args[0])


class ConfigError(NflError):
    """A configuration cannot be read or does not hold together."""

    code = "config.invalid"
    exit_code = ExitCode.CONFIG
    hint = "correct the file or variable that is named, then run `nfl config check`"


class SpecError(ConfigError):
    """The levels of a model do not make a valid nested spec."""

    code = "spec.invalid"
    hint = "every parameter belongs to exactly one level; correct `levels` in fleet.toml"


class SchemaError(ConfigError):
    """Tensors do not fit the schema of the model."""

    code = "schema.invalid"
    hint = "model, spec and tensors must come from the same version of the fleet's configuration"


class MalformedError(NflError):
    """Bytes or values are not what they claim to be."""

    code = "data.malformed"
    exit_code = ExitCode.VERIFICATION
    hint = "discard the data and fetch or make them anew"


class DeltaError(MalformedError):
    """A delta cannot be built, or two deltas cannot be added."""

    code = "delta.invalid"
    hint = "only finite, shared tensors of the agreed schema make a delta"


class FrameError(MalformedError):
    """A frame or a packed vector is cut, padded, too long or forged."""

    code = "frame.malformed"


class TensorFileError(MalformedError):
    """A safetensors file breaks a rule of the strict reader."""

    code = "tensors.malformed"


class DurableError(NflError):
    """Durable state cannot be read back as it was written."""

    code = "durable.corrupt"
    hint = "restore the named file from a backup, or remove this device's or service's state and enrol it again"


class StorageFullError(DurableError):
    """The disk is full or a quota is reached; nothing was half-written."""

    code = "durable.disk-full"
    hint = "free some space on the named file system; the old content is still in place and work goes on from it"


class TransportError(NflError):
    """A peer could not be talked to."""

    code = "transport.failed"
    exit_code = ExitCode.UNREACHABLE
    hint = "check that the peer runs and that the network lets you reach it"


class UnreachableError(TransportError):
    """Nobody answers at the address."""

    code = "transport.unreachable"


class PortInUseError(TransportError):
    """Another process listens on the port already."""

    code = "transport.port-in-use"
    hint = "stop the other process or choose another port in fleet.toml"


class VerificationError(NflError):
    """Something that was received does not prove what it claims."""

    code = "verification.failed"
    exit_code = ExitCode.VERIFICATION
    hint = "do not use what was received; find out who sent it"


class IdentityError(VerificationError):
    """A certificate, token or id does not prove an identity of this fleet."""

    code = "identity.invalid"
    hint = "enrol the device or service in this fleet again"


class SignatureError(VerificationError):
    """A signature does not fit what was signed."""

    code = "signature.invalid"


class RollbackError(VerificationError):
    """A version is older than one that was seen already."""

    code = "bundle.rollback"
    hint = "publish a version with a higher number; an old one is never installed again under its own number"


class ExpiredError(VerificationError):
    """A certificate, token, policy or role is past its end."""

    code = "verification.expired"
    hint = "check the clock of this machine, then have the fleet issue a fresh one"


class ContentError(VerificationError):
    """Content does not have the digest or length that was signed for it."""

    code = "content.mismatch"
    hint = "fetch the content again; if it fails twice, the cache that serves it is damaged"


class PolicyError(VerificationError):
    """A request does not keep to the round policy."""

    code = "policy.violated"
    hint = "fetch the newest policy and make the contribution again"


class EgressError(NflError):
    """The egress gate refuses to let something leave the device."""

    code = "egress.refused"
    exit_code = ExitCode.VERIFICATION
    hint = "only shared tensors leave a device, once a policy, through the gate"


class AuthorisationError(NflError):
    """The peer is known and may not do this."""

    code = "authorisation.denied"
    exit_code = ExitCode.NOT_PERMITTED
    hint = "use an identity whose role is granted this method"


class NotFoundError(NflError):
    """A named thing does not exist."""

    code = "not-found"
    exit_code = ExitCode.NOT_FOUND
    hint = "list what exists and use one of its names"


class ConflictError(NflError):
    """A request contradicts what was done before."""

    code = "conflict"
    exit_code = ExitCode.CONFLICT
    hint = "look at the present state and decide again"


class DuplicateContributionError(ConflictError):
    """A contribution with this id was counted already."""

    code = "contribution.duplicate"
    hint = "nothing to do: a contribution counts once"


class LearningError(NflError):
    """Training, merging or exporting a model failed."""

    code = "learning.failed"
    hint = "check the samples and the learning settings; the last accepted model is still in place"


class MergeRefusedError(LearningError):
    """New shared levels would make the personal model worse."""

    code = "learning.merge-refused"
    hint = "nothing to do: the device keeps its model and waits for the next version"


class ProcessDiedError(NflError):
    """A process that the work depends on has ended."""

    code = "process.died"
    hint = "read its log, then start it again; durable state lets it go on where it stopped"
