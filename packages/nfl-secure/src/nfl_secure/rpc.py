"""Errors across gRPC: a service aborts with a status and the code of our error, a client gets our error back.

The message travels as `CODE: message`; the code also stands in the trailing metadata, for programs.
"""

from __future__ import annotations

from typing import NoReturn, TypeVar

import grpc
import grpc.aio

from nfl_core import errors

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")

CODE_METADATA = "nfl-code"

# First match counts: a subclass stands before its parent.
_STATUS: tuple[tuple[type[errors.NflError], grpc.StatusCode], ...] = (
    (errors.AuthorisationError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.IdentityError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.ExpiredError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.DuplicateContributionError, grpc.StatusCode.ALREADY_EXISTS),
    (errors.ConflictError, grpc.StatusCode.ABORTED),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.StorageFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.PolicyError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.VerificationError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.MalformedError, grpc.StatusCode.INVALID_ARGUMENT),
)
_UNREACHABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def status_of(error: errors.NflError) -> grpc.StatusCode:
    """Return the gRPC status that a service answers for an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


async def abort(context: grpc.aio.ServicerContext[_Request, _Reply], error: errors.NflError) -> NoReturn:
    """End a call with an error."""
    await context.abort(status_of(error), f"{error.code}: {error.message}", ((CODE_METADATA, error.code),))


def error_of(failure: grpc.RpcError, *, peer: str) -> errors.NflError:
    """Return our error for a failed call.

    Args:
        failure: As gRPC raised it on the client's side.
        peer: Address, for the message.

    Returns:
        The error class whose code the peer named, `UnreachableError` when nobody answered, else `TransportError`.
    """
    is_call = isinstance(failure, grpc.Call | grpc.aio.AioRpcError)
    status = failure.code() if is_call else grpc.StatusCode.UNKNOWN
    details = (failure.details() if is_call else None) or str(failure)
    code, _, message = details.partition(": ")
    known = _by_code(errors.NflError).get(code)
    if known is not None and message:
        return known(message)
    if status in _UNREACHABLE:
        return errors.UnreachableError(f"no answer from {peer}: {details[:300]}")
    return errors.TransportError(f"call to {peer} failed with {status.name}: {details[:300]}")


def _by_code(root: type[errors.NflError]) -> dict[str, type[errors.NflError]]:
    """Return the classes that a message alone can make, by code; a parent wins over a child that keeps its code."""
    found: dict[str, type[errors.NflError]] = {}
    for child in root.__subclasses__():
        if child.__init__ is errors.NflError.__init__:
            found.setdefault(child.code, child)
        found = {**_by_code(child), **found}
    return found
