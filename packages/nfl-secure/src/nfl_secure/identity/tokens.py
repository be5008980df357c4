"""One-time enrolment tokens: 256 random bits, kept as a hash, bound to one device and a deadline, redeemed once.

Each token is a file named by the hash of the token, so that the command that mints and the service that redeems can be
two processes; redeeming takes a lock that spans processes and is durable before it succeeds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nfl_core.durable import read_file, write_file
from nfl_core.errors import DurableError, IdentityError, NotFoundError
from nfl_core.ids import DeviceId, LeafId, parse_device_id, parse_leaf_id
from nfl_secure.errors import ExpiredTokenError, UsedTokenError
from nfl_secure.keystore import make_private_folder, utc_now

_TOKEN_BYTES = 32
DEFAULT_LIFETIME_S = 600.0


class TokenRecord(BaseModel):
    """What is kept of a token: everything but the token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device_id: DeviceId
    leaf: LeafId
    expires_at: datetime
    redeemed_at: datetime | None = None


class TokenStore:
    """The tokens of a fleet, in one folder.

    Args:
        path: The folder; made with mode 0700.
        clock: Now, aware.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._folder = path
        self._clock = clock
        make_private_folder(path)

    def mint(self, device_id: str, leaf: str, *, lifetime_s: float = DEFAULT_LIFETIME_S) -> str:
        """Make a token for one device.

        Args:
            device_id: The only device that can use it.
            leaf: The leaf the device will attach to.
            lifetime_s: Seconds until it is worth nothing, > 0.

        Returns:
            The token, shown once: the store cannot tell it again.

        Raises:
            IdentityError: An id is invalid or the lifetime not positive.
            DurableError: It cannot be stored.
        """
        if lifetime_s <= 0:
            raise IdentityError(f"lifetime of a token is {lifetime_s} s, expected more than 0")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        record = TokenRecord(
            device_id=parse_device_id(device_id),
            leaf=parse_leaf_id(leaf),
            expires_at=self._clock().astimezone(timezone.utc) + timedelta(seconds=lifetime_s),
        )
        self._write(self._path(token), record)
        return token

    def redeem(self, token: str, device_id: str) -> TokenRecord:
        """Use a token up. When this returns, no second call with it ever succeeds, not even after a power cut.

        Args:
            token: As it was minted.
            device_id: The device that presents it.

        Raises:
            UsedTokenError: It was redeemed before.
            ExpiredTokenError: It is too late.
            IdentityError: There is no such token, or it is for another device; it stays usable for the right one.
            DurableError: The use cannot be stored; it does not count as used.
        """
        with self._locked():
            path = self._path(token)
            try:
                record = TokenRecord.model_validate_json(read_file(path))
            except NotFoundError:
                raise IdentityError(
                    "enrolment token is unknown", hint="ask for a token with `nfl fleet token`"
                ) from None
            except ValidationError as error:
                raise DurableError(f"{path} is no record of a token") from error
            if record.device_id != device_id:
                raise IdentityError(
                    f"enrolment token is not for device {device_id[:64]!r}", hint="each device has a token of its own"
                )
            if record.redeemed_at is not None:
                raise UsedTokenError(
                    f"enrolment token of {record.device_id} was used at {record.redeemed_at:%Y-%m-%dT%H:%M:%SZ}"
                )
            now = self._clock()
            if now >= record.expires_at:
                raise ExpiredTokenError(
                    f"enrolment token of {record.device_id} expired at {record.expires_at:%Y-%m-%dT%H:%M:%SZ}"
                )
            used = record.model_copy(update={"redeemed_at": now.astimezone(timezone.utc)})
            self._write(path, used)
            return used

    def _path(self, token: str) -> Path:
        return self._folder / f"{hashlib.sha256(token.encode()).hexdigest()}.json"

    def _write(self, path: Path, record: TokenRecord) -> None:
        write_file(path, record.model_dump_json().encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A new open file description each time: excludes threads of this process as well as other processes.
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
