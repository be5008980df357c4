"""Who may call what: a table of methods and roles, deny by default, checked before a handler runs.

Rules:
* who calls is the URI SAN of the verified client certificate; no header, address or common name counts;
* a method that is not in the table is denied to everybody;
* a peer of another fleet is denied everything;
* what belongs to a device (its contribution) is touched by that device alone.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from nfl_core.errors import AuthorisationError, NflError
from nfl_core.ids import FleetName
from nfl_secure import rpc
from nfl_secure.identity.spiffe import Role, SpiffeId
from nfl_secure.tls import peer_spiffe

Grants: TypeAlias = Mapping[str, frozenset[Role]]

_DEVICE = frozenset({Role.DEVICE})

# Every method that is served behind client certificates, and the roles that may call it. `Enrol` is served on a port of
# its own, by token.
GRANTS: Grants = MappingProxyType(
    {
        "/nfl.device.v1.Device/Hello": _DEVICE,
        "/nfl.device.v1.Device/Contribute": _DEVICE,
        "/nfl.device.v1.Device/Fetch": _DEVICE,
        "/nfl.device.v1.Device/Report": _DEVICE,
    }
)


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


# A handler serves whatever messages its method has; nothing here looks at one.
_Call: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
_Stream: TypeAlias = Callable[[Any, Any], AsyncIterator[Any]]

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
    _Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
    _Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor


class AuthorisationInterceptor(_Interceptor):
    """Checks every call of a `grpc.aio` server before its handler sees a byte of it.

    Handlers are coroutine functions or async generator functions.

    Args:
        fleet: The fleet of the service.
        grants: The table.
    """

    def __init__(self, fleet: FleetName, *, grants: Grants = GRANTS) -> None:
        self._fleet = fleet
        self._grants = grants

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the handler behind the check. A method that nobody serves gets a handler that denies."""
        method = handler_call_details.method
        handler: _Handler | None = await continuation(handler_call_details)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(self._guarded_call(_no_handler, method))
        make, inner = _taken_apart(handler)
        guarded = (
            self._guarded_stream(inner, method)
            if inspect.isasyncgenfunction(inner)
            else self._guarded_call(inner, method)
        )
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    async def _check(self, context: _Context, method: str) -> None:
        try:
            authorise(peer_spiffe(context.auth_context()), method, fleet=self._fleet, grants=self._grants)
        except NflError as error:
            await rpc.abort(context, error)

    def _guarded_call(self, inner: _Call, method: str) -> _Call:
        async def call(request: object, context: _Context) -> object:
            await self._check(context, method)
            return await inner(request, context)

        return call

    def _guarded_stream(self, inner: _Stream, method: str) -> _Stream:
        async def stream(request: object, context: _Context) -> AsyncIterator[object]:
            await self._check(context, method)
            async for reply in inner(request, context):
                yield reply

        return stream


def _taken_apart(handler: _Handler) -> tuple[Callable[..., _Handler], Callable[..., Any]]:
    """Return what makes a handler of the same sort, and the function inside."""
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, _present(handler.stream_stream)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, _present(handler.stream_unary)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, _present(handler.unary_stream)
    return grpc.unary_unary_rpc_method_handler, _present(handler.unary_unary)


def _present(inner: Callable[..., Any] | None) -> Callable[..., Any]:
    return _no_handler if inner is None else inner


async def _no_handler(_request: object, context: _Context) -> None:
    # Reached only when a table grants a method that the server does not have.
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "method is not served here")
