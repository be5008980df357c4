"""Ask the trainer process to learn, and keep it alive.

The host process never loads torch: it talks to `python -m nfl_edge.trainer` by JSON lines. One trainer serves all
devices of a host, one request at a time. When it dies it is started again and the request is sent again: requests are
functions of what is on the disk, so the answer is the same.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Protocol, TypeVar

from pydantic import ValidationError

from nfl_core.errors import LearningError, ProcessDiedError
from nfl_edge.errors import TrainerError
from nfl_edge.requests import (
    AnyRequest,
    AnyResult,
    Envelope,
    Evaluated,
    EvaluateRequest,
    Failed,
    Hello,
    InitRequest,
    Learnt,
    MergeRequest,
    MergeResult,
    MicroUpdateRequest,
    Reply,
)

_LOG = logging.getLogger(__name__)
MAX_ATTEMPTS = 3  # a request that kills the trainer three times is to blame itself
START_S = 120.0  # importing torch on a slow board with a cold disk
REQUEST_S = 180.0  # the product's bound for one micro-update
STOP_S = 5.0
_LINE_BYTES = 1 << 20
_R = TypeVar("_R", Learnt, MergeResult, Evaluated)


class Learner(Protocol):
    """Who learns for the agent."""

    async def init(self, request: InitRequest) -> Learnt:
        """Make the first checkpoint. Raises LearningError, ProcessDiedError."""

    async def micro_update(self, request: MicroUpdateRequest) -> Learnt:
        """Run one micro-update. Raises LearningError, ProcessDiedError."""

    async def merge(self, request: MergeRequest) -> MergeResult:
        """Try a merge. Raises LearningError, ProcessDiedError."""

    async def evaluate(self, request: EvaluateRequest) -> Evaluated:
        """Score a checkpoint. Raises LearningError, ProcessDiedError."""


class TrainerProcess:
    """The trainer, started when it is first needed and restarted when it dies.

    Args:
        command: Command line of the trainer.
        request_s: Longest time of one request; a trainer that takes longer is killed.
    """

    def __init__(
        self, command: Sequence[str] = (sys.executable, "-m", "nfl_edge.trainer"), *, request_s: float = REQUEST_S
    ) -> None:
        self._command = tuple(command)
        self._request_s = request_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._number = 0
        self._aborted = False
        self.num_starts = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    async def init(self, request: InitRequest) -> Learnt:
        """Make the first checkpoint. Raises LearningError, ProcessDiedError."""
        return await self._ask(request, Learnt)

    async def micro_update(self, request: MicroUpdateRequest) -> Learnt:
        """Run one micro-update. Raises LearningError, ProcessDiedError."""
        return await self._ask(request, Learnt)

    async def merge(self, request: MergeRequest) -> MergeResult:
        """Try a merge. Raises LearningError, ProcessDiedError."""
        return await self._ask(request, MergeResult)

    async def evaluate(self, request: EvaluateRequest) -> Evaluated:
        """Score a checkpoint. Raises LearningError, ProcessDiedError."""
        return await self._ask(request, Evaluated)

    async def start(self) -> None:
        """Start the trainer now instead of at the first request. Raises ProcessDiedError."""
        async with self._turn:
            await self._running()

    def abort(self) -> None:
        """Refuse everything from now on and cut off what is under way; it is asked again after a restart."""
        self._aborted = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """End the trainer: by the end of its input, then by force."""
        async with self._turn:
            await self._end(grace_s=STOP_S)

    async def _ask(self, request: AnyRequest, kind: type[_R]) -> _R:
        async with self._turn:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                try:
                    result = await self._once(request)
                    break
                except ProcessDiedError as error:
                    await self._end(grace_s=0.0)
                    if attempt == MAX_ATTEMPTS or self._aborted:
                        raise
                    _LOG.warning("trainer died during %s (%s); asking again", request.op, error)
                except BaseException:
                    # Cancelled in the middle: an answer that nobody reads must not be taken for the next one.
                    await self._end(grace_s=0.0)
                    raise
        if isinstance(result, Failed):
            raise TrainerError(f"{request.op} failed: {result.message} [{result.code}]")
        if not isinstance(result, kind):
            raise LearningError(f"the trainer answered {request.op} with {result.kind}")
        return result

    async def _once(self, request: AnyRequest) -> AnyResult:
        process = await self._running()
        self._number += 1
        envelope = Envelope(number=self._number, request=request)
        assert process.stdin is not None
        try:
            process.stdin.write(envelope.model_dump_json().encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ProcessDiedError("the trainer closed its input") from error
        line = await self._line(process, self._request_s)
        try:
            reply = Reply.model_validate_json(line)
        except ValidationError as error:
            raise ProcessDiedError("the trainer answered something that is no reply") from error
        if reply.number != self._number:
            raise ProcessDiedError(f"the trainer answered request {reply.number}, expected {self._number}")
        return reply.result

    async def _running(self) -> asyncio.subprocess.Process:
        if self._aborted:
            raise ProcessDiedError("the host is ending")
        if self._process is not None and self._process.returncode is None:
            return self._process
        pipe = asyncio.subprocess.PIPE
        # A session of its own: Ctrl-C in the terminal is for the host, which ends the trainer in good order.
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, limit=_LINE_BYTES, start_new_session=True
        )
        self.num_starts += 1
        try:
            Hello.model_validate_json(await self._line(self._process, START_S))
        except ValidationError as error:
            raise ProcessDiedError("the trainer did not say hello") from error
        return self._process

    async def _line(self, process: asyncio.subprocess.Process, limit_s: float) -> bytes:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), limit_s)
        except asyncio.TimeoutError as error:
            raise ProcessDiedError(f"the trainer did not answer within {limit_s:.0f} s and was killed") from error
        except ValueError as error:
            raise ProcessDiedError("the trainer answered with a line that is too long") from error
        if not line.endswith(b"\n"):
            raise ProcessDiedError(f"the trainer (process {process.pid}) ended in the middle of its work")
        return line

    async def _end(self, *, grace_s: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except asyncio.TimeoutError:
            if process.returncode is None:
                process.kill()
            await process.wait()
