"""Names of principals: `spiffe://FLEET/ROLE/ID`, and nothing else.

>>> str(parse_spiffe("spiffe://home/device/robot-7"))
'spiffe://home/device/robot-7'
>>> parse_spiffe("spiffe://home/device/robot-7").role
<Role.DEVICE: 'device'>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from nfl_core.errors import IdentityError
from nfl_core.ids import FleetName, parse_fleet_name, parse_site_id

_URI = re.compile(r"spiffe://([^/?#]+)/([^/?#]+)/([^/?#]+)")


class Role(str, Enum):
    """What a principal is in its fleet: a role may call certain methods and sign certain kinds of messages."""

    DEVICE = "device"
    LEAF = "leaf"
    KEEPER = "keeper"
    ROOT = "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpiffeId:
    """One principal's name. Equal names are equal principals."""

    fleet: FleetName
    role: Role
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.fleet}/{self.role.value}/{self.name}"

    @property
    def server_name(self) -> str:
        """DNS name in the certificate of a service, by which a client insists on this very service at any address."""
        return f"{self.name}.{role_server_name(self.role, fleet=self.fleet)}"


def role_server_name(role: Role, *, fleet: FleetName) -> str:
    """Return the DNS name that the certificates of all services of a role carry."""
    return f"{role.value}.{fleet}"


def parse_spiffe(uri: str) -> SpiffeId:
    """Return `uri` as a principal's name.

    Args:
        uri: What stands in the URI SAN of a certificate.

    Returns:
        The name; `str()` of it is `uri` again.

    Raises:
        IdentityError: It has another form, a part that is no valid name, or an unknown role.
    """
    match = _URI.fullmatch(uri)
    if not match:
        raise IdentityError(f"SPIFFE id is {uri[:120]!r}, expected spiffe://FLEET/ROLE/ID")
    fleet, role, name = match.groups()
    if role not in {known.value for known in Role}:
        raise IdentityError(
            f"role of {uri[:120]!r} is {role[:40]!r}, expected one of {', '.join(known.value for known in Role)}"
        )
    return SpiffeId(fleet=parse_fleet_name(fleet), role=Role(role), name=parse_site_id(name))
