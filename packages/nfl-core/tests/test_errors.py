from __future__ import annotations

import inspect
import re

import pytest

from nfl_core import errors
from nfl_core.errors import ExitCode, NflError

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, NflError)]

# Codes are stable: programs compare them. An entry is never changed, only added.
CODES = {
    "NflError": ("nfl", 1),
    "AuthorisationError": ("authorisation.denied", 5),
    "ConfigError": ("config.invalid", 3),
    "ConflictError": ("conflict", 8),
    "ContentError": ("content.mismatch", 7),
    "DeltaError": ("delta.invalid", 7),
    "DuplicateContributionError": ("contribution.duplicate", 8),
    "DurableError": ("durable.corrupt", 1),
    "EgressError": ("egress.refused", 7),
    "ExpiredError": ("verification.expired", 7),
    "FrameError": ("frame.malformed", 7),
    "IdentityError": ("identity.invalid", 7),
    "LearningError": ("learning.failed", 1),
    "MalformedError": ("data.malformed", 7),
    "MergeRefusedError": ("learning.merge-refused", 1),
    "NotFoundError": ("not-found", 4),
    "PolicyError": ("policy.violated", 7),
    "PortInUseError": ("transport.port-in-use", 6),
    "ProcessDiedError": ("process.died", 1),
    "RollbackError": ("bundle.rollback", 7),
    "SchemaError": ("schema.invalid", 3),
    "SignatureError": ("signature.invalid", 7),
    "SpecError": ("spec.invalid", 3),
    "StorageFullError": ("durable.disk-full", 1),
    "TensorFileError": ("tensors.malformed", 7),
    "TransportError": ("transport.failed", 6),
    "UnreachableError": ("transport.unreachable", 6),
    "VerificationError": ("verification.failed", 7),
}


def test_codes_are_pinned_and_unique() -> None:
    assert {cls.__name__: (cls.code, cls.exit_code) for cls in CLASSES} == CODES
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_says_what_to_do(cls: type[NflError]) -> None:
    error = cls("what, got, expected")
    assert (str(error), error.message) == ("what, got, expected",) * 2
    assert error.hint
    assert cls.__doc__
    assert cls("m", hint="do this").hint == "do this"
    assert re.fullmatch(r"[a-z-]+(\.[a-z-]+)?", cls.code)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"\+-- (\w+)", errors.__doc__ or ""))
    assert drawn == {cls.__name__ for cls in CLASSES} - {"NflError"}
    for cls in CLASSES:
        if cls is not NflError:
            assert re.search(rf"\+-- {cls.__name__} .*{re.escape(cls.code)}", errors.__doc__ or ""), cls


def test_exit_codes_mean_the_same_in_every_shell() -> None:
    assert all(code < 126 for code in ExitCode if code is not ExitCode.INTERRUPTED)
    assert {cls.exit_code for cls in CLASSES} <= set(ExitCode)
