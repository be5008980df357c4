"""Who is who in a fleet: SPIFFE ids, the fleet's CA, principals with two keys, and enrolment by one-time token.

Every principal holds two keys, made where they are used: one for TLS (ECDSA P-256, because gRPC refuses Ed25519
certificates) and one for signing statements (Ed25519). Both certificates carry the same SPIFFE id, and nothing but that
id says who somebody is: no header, no address, no common name.
"""

from nfl_secure.identity.ca import FleetCA
from nfl_secure.identity.enrolment import Enrolled, EnrolmentDesk, EnrolmentService, Placement, enrol_device
from nfl_secure.identity.keys import CertificateRequests, Principal
from nfl_secure.identity.spiffe import Role, SpiffeId, parse_spiffe
from nfl_secure.identity.tokens import TokenStore
from nfl_secure.identity.trust import CertificateKind, Trust

__all__ = [
    "CertificateKind",
    "CertificateRequests",
    "Enrolled",
    "EnrolmentDesk",
    "EnrolmentService",
    "FleetCA",
    "Placement",
    "Principal",
    "Role",
    "SpiffeId",
    "TokenStore",
    "Trust",
    "enrol_device",
    "parse_spiffe",
]
