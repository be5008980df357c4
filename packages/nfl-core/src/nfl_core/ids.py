"""Typed names and digests, and the only functions that make them from text.

Names of devices, leaves, regions, sites and fleets share one form, `^[a-z0-9][a-z0-9-]{0,62}$`: it is a DNS label, a
safe file name and a safe path of a SPIFFE id at once. Digests are SHA-256 and contribution or batch ids are 128 bits,
both in lower-case hex, so that equal things have equal text.

    >>> parse_device_id("robot-7")
    'robot-7'
    >>> parse_device_id("../../etc")
    Traceback (most recent call last):
    ...
    nfl_core.errors.IdentityError: device id is '../../etc', expected 1 to 63 of a-z, 0-9 and -, not starting with -
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from typing import NewType

from nfl_core.errors import IdentityError

FleetName = NewType("FleetName", str)
DeviceId = NewType("DeviceId", str)
LeafId = NewType("LeafId", str)
RegionId = NewType("RegionId", str)
SiteId = NewType("SiteId", str)
VersionId = NewType("VersionId", int)
PolicyId = NewType("PolicyId", int)
ContributionId = NewType("ContributionId", str)
BatchId = NewType("BatchId", str)
Digest = NewType("Digest", str)

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


def parse_fleet_name(text: str) -> FleetName:
    """Return `text` as a fleet name. Raises IdentityError when it is none."""
    return FleetName(_name(text, "fleet name"))


def parse_device_id(text: str) -> DeviceId:
    """Return `text` as a device id. Raises IdentityError when it is none."""
    return DeviceId(_name(text, "device id"))


def parse_leaf_id(text: str) -> LeafId:
    """Return `text` as a leaf id. Raises IdentityError when it is none."""
    return LeafId(_name(text, "leaf id"))


def parse_region_id(text: str) -> RegionId:
    """Return `text` as a region id. Raises IdentityError when it is none."""
    return RegionId(_name(text, "region id"))


def parse_site_id(text: str) -> SiteId:
    """Return `text` as a site id. Raises IdentityError when it is none."""
    return SiteId(_name(text, "site id"))


def parse_contribution_id(text: str) -> ContributionId:
    """Return `text` as a contribution id. Raises IdentityError when it is none."""
    return ContributionId(_hex(text, "contribution id", _HEX32, 32))


def parse_batch_id(text: str) -> BatchId:
    """Return `text` as a batch id. Raises IdentityError when it is none."""
    return BatchId(_hex(text, "batch id", _HEX32, 32))


def parse_digest(text: str) -> Digest:
    """Return `text` as a SHA-256 digest. Raises IdentityError when it is none."""
    return Digest(_hex(text, "digest", _HEX64, 64))


def parse_version_id(value: int) -> VersionId:
    """Return `value` as a version. Raises IdentityError when it is not in 0 to 2**63 - 1."""
    return VersionId(_number(value, "version"))


def parse_policy_id(value: int) -> PolicyId:
    """Return `value` as a policy id. Raises IdentityError when it is not in 0 to 2**63 - 1."""
    return PolicyId(_number(value, "policy id"))


def new_contribution_id() -> ContributionId:
    """Make a contribution id that nobody can guess (128 random bits)."""
    return ContributionId(secrets.token_hex(16))


def new_batch_id() -> BatchId:
    """Make a batch id that nobody can guess (128 random bits)."""
    return BatchId(secrets.token_hex(16))


def digest_of(data: bytes) -> Digest:
    """Return the SHA-256 of `data`."""
    return Digest(hashlib.sha256(data).hexdigest())


def _name(text: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        raise IdentityError(f"{what} is {text[:80]!r}, expected 1 to 63 of a-z, 0-9 and -, not starting with -")
    return text


def _hex(text: str, what: str, pattern: re.Pattern[str], length: int) -> str:
    if not pattern.fullmatch(text):
        raise IdentityError(f"{what} is {text[:80]!r}, expected {length} lower-case hex digits")
    return text


def _number(value: int, what: str) -> int:
    if not 0 <= value < 2**63:
        raise IdentityError(f"{what} is {value}, expected 0 to 2**63 - 1")
    return value


def canonical_json(value: object) -> bytes:
    """Return the one ASCII form of a JSON value: sorted keys, no spaces, no NaN.

    Equal values give equal bytes in every Python, so that a digest of it is a fingerprint. Numbers keep Python's
    shortest form; use whole numbers and strings where other languages must find the same bytes.

    Raises:
        ValueError: `value` holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
