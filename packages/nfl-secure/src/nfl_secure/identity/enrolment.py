"""Enrolment: a device with a one-time token becomes a member of a fleet. Its keys are made on it and never leave it.

    device                                             root
    make two keys
    token, id, two requests signed by the keys   --->  check the requests, redeem the token, make certificates
    check certificates against the pinned CA     <---  certificates, leaf, region, settings, first TUF root

`EnrolmentDesk` decides, `EnrolmentService` and `enrol_device` carry it over gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import grpc
import grpc.aio

from nfl_core.errors import ConflictError, IdentityError, NflError
from nfl_core.ids import DeviceId, LeafId, parse_device_id, parse_leaf_id, parse_region_id
from nfl_core.wire import enrol_pb2, enrol_pb2_grpc
from nfl_secure import rpc, tls
from nfl_secure.identity.ca import FleetCA, check_request
from nfl_secure.identity.keys import CertificateRequests, Principal, is_enrolled
from nfl_secure.identity.spiffe import Role, SpiffeId, role_server_name
from nfl_secure.identity.tokens import TokenStore
from nfl_secure.identity.trust import CertificateKind, Trust, parse_certificate
from nfl_secure.keystore import utc_now

if TYPE_CHECKING:
    _Context: TypeAlias = grpc.aio.ServicerContext[enrol_pb2.EnrolRequest, enrol_pb2.EnrolReply]

MAX_REQUEST_BYTES = 64 * 1024  # two requests of some 400 bytes, a token and an id, with much room
DEFAULT_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a device belongs, and what it needs to begin.

    Attributes:
        leaf_address: `host:port` of its leaf.
        region: Its region.
        settings_json: The sections of fleet.toml that a device needs.
        trusted_root: First TUF root metadata.
    """

    leaf_address: str
    region: str
    settings_json: str
    trusted_root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What a device has after enrolment.

    Attributes:
        principal: Its keys and certificates, stored.
        leaf: Its leaf.
        placement: Where the leaf is, and what the device needs to begin.
    """

    principal: Principal
    leaf: LeafId
    placement: Placement


class EnrolmentDesk:
    """Decides on requests to enrol.

    Args:
        ca: Makes the certificates.
        tokens: Which devices are invited.
        place: Returns the placement of a device at the leaf its token names; raises NotFoundError for an unknown leaf.
    """

    def __init__(self, *, ca: FleetCA, tokens: TokenStore, place: Callable[[DeviceId, LeafId], Placement]) -> None:
        self._ca = ca
        self._tokens = tokens
        self._place = place

    def enrol(self, request: enrol_pb2.EnrolRequest) -> enrol_pb2.EnrolReply:
        """Return the answer to a request.

        The requests for certificates are checked before the token is used up, so that a faulty client can try again.

        Raises:
            UsedTokenError: The token was redeemed before.
            ExpiredTokenError: The token is too late.
            IdentityError: The token is unknown or another device's, or a request does not prove possession of its key.
            NotFoundError: The leaf of the token does not exist.
            DurableError: The use of the token cannot be stored.
        """
        device = parse_device_id(request.device_id)
        check_request(request.tls_csr, kind=CertificateKind.TLS)
        check_request(request.sign_csr, kind=CertificateKind.SIGN)
        record = self._tokens.redeem(request.token, device)
        placement = self._place(device, record.leaf)
        spiffe = SpiffeId(fleet=self._ca.fleet, role=Role.DEVICE, name=device)
        requests = CertificateRequests(tls_csr=request.tls_csr, sign_csr=request.sign_csr)
        tls_certificate, sign_certificate = self._ca.certify(requests, spiffe)
        return enrol_pb2.EnrolReply(
            tls_certificate=tls_certificate,
            sign_certificate=sign_certificate,
            ca=self._ca.ca_pem,
            leaf_address=placement.leaf_address,
            leaf_id=record.leaf,
            region=placement.region,
            fleet=self._ca.fleet,
            settings_json=placement.settings_json,
            trusted_root=placement.trusted_root,
        )


class EnrolmentService(enrol_pb2_grpc.EnrolmentServicer):
    """Serves a desk over `grpc.aio`."""

    def __init__(self, desk: EnrolmentDesk) -> None:
        self._desk = desk

    async def Enrol(  # noqa: N802  # gRPC names methods so
        self, request: enrol_pb2.EnrolRequest, context: _Context
    ) -> enrol_pb2.EnrolReply:
        """Answer one request; errors of ours become a gRPC status with our code."""
        try:
            return self._desk.enrol(request)
        except NflError as error:
            await rpc.abort(context, error)


async def serve_enrolment(
    desk: EnrolmentDesk, *, principal: Principal, host: str, port: int
) -> tuple[grpc.aio.Server, int]:
    """Start the enrolment port of the root.

    Returns:
        The server, started, and its port.

    Raises:
        PortInUseError: The port is taken.
        TransportError: It cannot be bound for another reason.
    """
    options = (
        *(o for o in tls.SERVER_OPTIONS if o[0] != "grpc.max_receive_message_length"),
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    )
    server = grpc.aio.server(options=options)
    enrol_pb2_grpc.add_EnrolmentServicer_to_server(EnrolmentService(desk), server)
    bound = tls.bind_port(server, host=host, port=port, credentials=tls.enrolment_server_credentials(principal))
    await server.start()
    return server, bound


def enrol_device(
    address: str, *, ca_pem: bytes, token: str, device_id: str, folder: Path, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Enrolled:
    """Enrol this device: make keys, send requests, check and store what comes back.

    Args:
        address: `host:port` of the root's enrolment port.
        ca_pem: The fleet's CA, from a source the owner trusts.
        token: From `nfl fleet token`.
        device_id: The device the token is for.
        folder: `keys/` of the device. Keys of an interrupted attempt are used again.
        timeout_s: Longest wait for the answer.

    Raises:
        ConflictError: The device is enrolled already.
        IdentityError: The root refuses, or its answer is not for these keys, this device and this fleet.
        UsedTokenError: The token was redeemed before.
        ExpiredTokenError: The token is too late.
        UnreachableError: Nobody answers, or not with a certificate of this fleet.
        TransportError: The call failed otherwise.
    """
    fleet = Trust.of(ca_pem).fleet
    spiffe = SpiffeId(fleet=fleet, role=Role.DEVICE, name=parse_device_id(device_id))
    if is_enrolled(folder):
        raise ConflictError(
            f"{folder} holds an enrolled device already",
            hint="remove the folder to enrol this device anew; its old identity is lost then",
        )
    requests = Principal.create(folder, spiffe)
    server_name = role_server_name(Role.ROOT, fleet=fleet)  # a token is shown to a root alone
    message = enrol_pb2.EnrolRequest(
        token=token, device_id=device_id, tls_csr=requests.tls_csr, sign_csr=requests.sign_csr
    )
    with grpc.secure_channel(
        address, tls.enrolment_channel_credentials(ca_pem), options=tls.channel_options(server_name)
    ) as channel:
        try:
            reply = enrol_pb2_grpc.EnrolmentStub(channel).Enrol(message, timeout=timeout_s)
        except grpc.RpcError as failure:
            raise rpc.error_of(failure, peer=address) from failure
    return _accept(reply, spiffe=spiffe, ca_pem=ca_pem, folder=folder)


def _accept(reply: enrol_pb2.EnrolReply, *, spiffe: SpiffeId, ca_pem: bytes, folder: Path) -> Enrolled:
    if reply.ca != ca_pem or reply.fleet != spiffe.fleet:
        raise IdentityError(
            f"the root speaks for fleet {reply.fleet!r} with another CA, expected {spiffe.fleet!r} with the pinned one"
        )
    trust, now = Trust.of(ca_pem), utc_now()
    for der, kind in ((reply.tls_certificate, CertificateKind.TLS), (reply.sign_certificate, CertificateKind.SIGN)):
        granted = trust.check(parse_certificate(der), kind=kind, at=now)
        if granted != spiffe:
            raise IdentityError(f"the root certifies {granted}, expected {spiffe}")
    principal = Principal.install(
        folder, tls_certificate=reply.tls_certificate, sign_certificate=reply.sign_certificate, ca_pem=ca_pem
    )
    placement = Placement(
        leaf_address=reply.leaf_address,
        region=parse_region_id(reply.region),
        settings_json=reply.settings_json,
        trusted_root=reply.trusted_root,
    )
    return Enrolled(principal=principal, leaf=parse_leaf_id(reply.leaf_id), placement=placement)
