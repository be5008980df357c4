"""Who may call what: a table of methods and roles, deny by default, checked before a handler runs.

Rules:
* who calls is the URI SAN of the verified client certificate; no header, address or common name counts;
* a method that is not in the table is denied to everybody;
* a peer of another fleet is denied everything;
* what belongs to a device (its contribution) is touched by that device alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import grpc
import grpc.aio

from nfl_core.errors import AuthorisationError, NflError
from nfl_core.ids import FleetName
from nfl_secure import rpc
from nfl_secure.identity.spiffe import Role, SpiffeId
from nfl_secure.tls import peer_spiffe

Grants: TypeAlias = Mapping[str, frozenset[Role]]

_DEVICE = frozenset({Role.DEVICE})

GRANTS: Grants = MappingProxyType(
    {
        "/nfl.device.v1.Device/Hello": _DEVICE,
        "/nfl.device.v1.Device/Contribute": _DEVICE,
        "/nfl.device.v1.Device/Fetch": _DEVICE,
        "/nfl.device.v1.Device/Report": _DEVICE,
    }
)
"""Every method that is served behind client certificates, and the roles that may call it. `Enrol` is served on a port of its own, by token."""


def authorise(
    peer: SpiffeId, method: str, *, fleet: FleetName, resource: SpiffeId | None = None, grants: Grants = GRANTS
) -> None:
    """Return when a call is allowed.

    Args:
        peer: Who calls.
        method: Full name, `/package.Service/Method`.
        fleet: The fleet of the service.
        resource: The principal to whom the touched thing belongs; None: it belongs to the fleet.
        grants: The table.

    Raises:
        AuthorisationError: Everything that is not granted.
    """
    if peer.fleet != fleet:
        raise AuthorisationError(f"{peer} is not of fleet {fleet}")
    if peer.role not in grants.get(method, frozenset()):
        raise AuthorisationError(f"role {peer.role.value} may not call {method}")
    if resource is not None and resource != peer:
        raise AuthorisationError(f"{peer} may not act for {resource}")


class AuthorisationInterceptor(grpc.aio.ServerInterceptor):
    """Checks every call of a `grpc.aio` server before its handler sees a byte of it.

    Args:
        fleet: The fleet of the service.
        grants: The table.
    """

    def __init__(self, fleet: FleetName, *, grants: Grants = GRANTS) -> None:
        self._fleet = fleet
        self._grants = grants

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Return the handler behind the check. An unknown method gets a handler that denies."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(self._guarded_call(_unknown, method))
        if handler.request_streaming and handler.response_streaming:
            make, inner = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        elif handler.request_streaming:
            make, inner = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        elif handler.response_streaming:
            make, inner = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            make, inner = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        guarded = (
            self._guarded_stream(inner, method)
            if inspect.isasyncgenfunction(inner)
            else self._guarded_call(inner, method)
        )
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    async def _check(self, context: grpc.aio.ServicerContext, method: str) -> None:
        try:
            authorise(peer_spiffe(context.auth_context()), method, fleet=self._fleet, grants=self._grants)
        except NflError as error:
            await rpc.abort(context, error)

    def _guarded_call(self, inner, method):
        async def call(request, context):
            await self._check(context, method)
            return await inner(request, context)

        return call

    def _guarded_stream(self, inner, method):
        async def stream(request, context):
            await self._check(context, method)
            async for reply in inner(request, context):
                yield reply

        return stream


async def _unknown(request, context) -> None:
    raise AssertionError("an unknown method is in no table, so the check before this denies it")
