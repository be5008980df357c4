"""Run as `python -m nfl_edge.trainer`: the one process of a device host that holds torch.

It reads requests as JSON lines on stdin, answers on stdout, logs on stderr, and ends when stdin does. It runs at the
lowest priority with one thread: inference always wins. It has no network code and owns no durable state but the
checkpoint files that it writes, so it may be killed at any time.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from nfl_core.errors import NflError
from nfl_edge.requests import (
    AnyResult,
    Envelope,
    EvaluateRequest,
    Failed,
    Hello,
    InitRequest,
    MergeRequest,
    MicroUpdateRequest,
    Reply,
)

_LOG = logging.getLogger("nfl_edge.trainer")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
NICE = 19


def main() -> int:
    """Answer requests until stdin ends. Returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s trainer %(levelname)s %(message)s")
    _be_modest()
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    # Nobody but this protocol may write to stdout: a stray print would break a line.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    print(Hello(pid=os.getpid(), torch=str(torch.__version__)).model_dump_json(), file=out, flush=True)
    for line in sys.stdin:
        try:
            envelope = Envelope.model_validate_json(line)
        except ValidationError as error:
            _LOG.error("a request cannot be read: %s", error)
            return 1
        print(Reply(number=envelope.number, result=_answer(envelope)).model_dump_json(), file=out, flush=True)
    return 0


def _answer(envelope: Envelope) -> AnyResult:
    from nfl_edge import training

    request = envelope.request
    try:
        match request:
            case InitRequest():
                return training.init(request)
            case MicroUpdateRequest():
                return training.learn(request)
            case MergeRequest():
                return training.merge_in(request)
            case EvaluateRequest():
                return training.evaluate(request)
    except NflError as error:
        _LOG.warning("%s of %s refused: %s", request.op, Path(request.task.checkpoints).parts[-3:-2], error)
        return Failed(code=error.code, message=error.message)
    except Exception as error:  # noqa: BLE001 - process boundary: logged with traceback, and the request fails
        _LOG.exception("%s failed", request.op)
        return Failed(code="trainer.crashed", message=f"{type(error).__name__}: {error}")


def _be_modest() -> None:
    """Lowest priority, and no life without the host that asks."""
    os.nice(NICE)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
