"""The one TLS profile: TLS 1.3, certificates of the fleet's CA on both sides, and a proof of it at start-up.

grpcio has no option for a lowest TLS version. `nfl_secure.__init__` sets a variable that leaves it without a usable TLS
1.2 suite; this module refuses to make credentials where that came too late, and `start_up_self_test` offers a server
its own port TLS 1.2, and TLS 1.3 without a certificate, and stops the start when either is accepted.

The enrolment port is the one exception: a device that enrols has no certificate yet, so only the server shows one
there.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import grpc
import grpc.aio

from nfl_core.errors import IdentityError, PortInUseError, TransportError, UnreachableError
from nfl_core.wire.limits import MAX_GRPC_MESSAGE_BYTES
from nfl_secure import TLS13_HELD
from nfl_secure.errors import TlsProfileError
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import SpiffeId, parse_spiffe

Options: TypeAlias = Sequence[tuple[str, int | str]]

# A connection is closed gently after ten minutes, so that a peer whose certificate has ended does not live on in an old
# one.
SERVER_OPTIONS: Options = (
    ("grpc.so_reuseport", 0),  # else a second server binds the same port and takes half of the calls
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)
CHANNEL_OPTIONS: Options = (
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.enable_retries", 0),  # retries are the caller's: it knows what may be said twice
)


def channel_options(peer: str) -> Options:
    """Return the options of a channel to one service.

    Args:
        peer: `SpiffeId.server_name` of the service. The handshake fails when another answers at the address, even
            one of the same fleet.
    """
    return (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", peer))


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # with an empty SETTINGS frame, RFC 9113 3.4


class _Accepted(NamedTuple):
    version: str
    serves: bool


def server_credentials(principal: Principal) -> grpc.ServerCredentials:
    """Return what a service listens with: its certificate, and clients must show one of the fleet's CA.

    Raises:
        TlsProfileError: grpc was imported before nfl_secure in this process.
    """
    _require_profile()
    pair = (principal.tls_key_pem, principal.tls_cert_pem)
    return grpc.ssl_server_credentials([pair], root_certificates=principal.ca_pem, require_client_auth=True)


def channel_credentials(principal: Principal) -> grpc.ChannelCredentials:
    """Return what a device or service calls with. Raises TlsProfileError like `server_credentials`."""
    _require_profile()
    return grpc.ssl_channel_credentials(principal.ca_pem, principal.tls_key_pem, principal.tls_cert_pem)


def enrolment_server_credentials(principal: Principal) -> grpc.ServerCredentials:
    """Return what the enrolment port listens with: no client certificates. Raises TlsProfileError."""
    _require_profile()
    return grpc.ssl_server_credentials([(principal.tls_key_pem, principal.tls_cert_pem)])


def enrolment_channel_credentials(ca_pem: bytes) -> grpc.ChannelCredentials:
    """Return what a device enrols with: the pinned CA alone. Raises TlsProfileError like `server_credentials`."""
    _require_profile()
    return grpc.ssl_channel_credentials(ca_pem)


def bind_port(server: grpc.aio.Server, *, host: str, port: int, credentials: grpc.ServerCredentials) -> int:
    """Make a server listen.

    Args:
        server: Made with `SERVER_OPTIONS`.
        host: Address to listen at.
        port: 0: any free one.
        credentials: From this module.

    Returns:
        The port.

    Raises:
        PortInUseError: Another process listens there.
        TransportError: The port cannot be bound for another reason.
    """
    try:
        bound = server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        if port and _answers(host, port):
            raise PortInUseError(f"port {port} of {host} is in use by another process") from error
        raise TransportError(f"cannot listen at {host}:{port}: {error}") from error
    if not bound:
        raise PortInUseError(f"port {port} of {host} is in use by another process")
    return bound


def peer_spiffe(auth_context: Mapping[str, Iterable[bytes]]) -> SpiffeId:
    """Return who the peer of a call is: the URI SAN of its verified certificate, and nothing else.

    Args:
        auth_context: `context.auth_context()` of a server's call.

    Raises:
        IdentityError: There is no certificate, or it does not name exactly one principal.
        TlsProfileError: The connection is not TLS 1.3.
    """
    uris = list(auth_context.get("peer_uri", ()))
    if len(uris) != 1:
        raise IdentityError(f"peer shows {len(uris)} URI names in its certificate, expected exactly one SPIFFE id")
    versions = list(auth_context.get("ssl_tls_version", ()))
    if versions and versions != [b"TLSv1.3"]:
        raise TlsProfileError(f"peer speaks {versions[0]!r}, expected TLSv1.3")
    try:
        return parse_spiffe(uris[0].decode("ascii"))
    except UnicodeDecodeError as error:
        raise IdentityError("URI name of the peer's certificate is not ASCII") from error


def start_up_self_test(
    address: str, *, principal: Principal, client_certificates: bool = True, timeout_s: float = 5.0
) -> None:
    """Attack our own port before anybody else can, and stop the start if it gives way.

    Blocks; in an event loop run it with `asyncio.to_thread`.

    Args:
        address: `host:port` that listens.
        principal: The service that listens there; its own, good certificate is what TLS 1.2 is tried with.
        client_certificates: Whether the port has to refuse a client without certificate; False for enrolment alone.
        timeout_s: Longest wait of one attempt.

    Raises:
        TlsProfileError: The port accepts TLS 1.2, or a client without certificate, or does not speak TLS 1.3.
        UnreachableError: Nobody listens.
    """
    host, _, port = address.rpartition(":")
    target = (host.strip("[]"), int(port))
    server_name = principal.spiffe.server_name
    old = _client_context(principal)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    accepted = _handshake(target, old, server_name=server_name, timeout_s=timeout_s)
    if accepted is not None:
        raise TlsProfileError(f"{address} accepts {accepted.version}, expected TLS 1.3 alone")
    bare = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=principal.ca_pem.decode())
    bare.minimum_version = ssl.TLSVersion.TLSv1_3
    bare.set_alpn_protocols(["h2"])
    # The control: with TLS 1.3 the handshake itself succeeds, or the refusal above proved nothing.
    accepted = _handshake(target, bare, server_name=server_name, timeout_s=timeout_s)
    if accepted is None:
        raise TlsProfileError(f"{address} does not speak TLS 1.3 with a certificate of fleet {principal.spiffe.fleet}")
    if client_certificates and accepted.serves:
        raise TlsProfileError(f"{address} serves a client without certificate")


def _require_profile() -> None:
    if not TLS13_HELD:
        raise TlsProfileError("grpc was imported before nfl_secure in this process and would speak TLS 1.2")


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def _client_context(principal: Principal) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=principal.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    with tempfile.NamedTemporaryFile(prefix="nfl-self-test-") as file:  # mode 0600
        file.write(principal.tls_cert_pem + principal.tls_key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _handshake(
    target: tuple[str, int], context: ssl.SSLContext, *, server_name: str, timeout_s: float
) -> _Accepted | None:
    """Return what a server accepted, None when it refused the handshake."""
    try:
        raw = socket.create_connection(target, timeout=timeout_s)
    except OSError as error:
        raise UnreachableError(f"nobody listens at {target[0]}:{target[1]}: {error}") from error
    with raw:
        try:
            with context.wrap_socket(raw, server_hostname=server_name) as wrapped:
                return _Accepted(version=str(wrapped.version()), serves=_is_served(wrapped))
        except TimeoutError as error:
            raise UnreachableError(f"{target[0]}:{target[1]} does not answer within {timeout_s} s") from error
        except (ssl.SSLError, ConnectionError):
            return None


def _is_served(wrapped: ssl.SSLSocket) -> bool:
    """Return whether the server talks. With TLS 1.3 a client learns only after its handshake that it was refused."""
    try:
        wrapped.sendall(_PREFACE)
        return bool(wrapped.recv(64))
    except (ssl.SSLError, ConnectionError):
        return False
