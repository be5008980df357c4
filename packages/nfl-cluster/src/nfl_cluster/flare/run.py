"""Run one of FLARE's modules as this process, on a leash: `python -m nfl_cluster.flare.run MODULE ARGUMENTS...`.

Both FLARE's parents and its job processes start through here. What it adds:

- TLS 1.3 only, set before anything can load grpc;
- the process dies at once when the process that started it dies, so that a killed parent leaves no job process
  behind. (`PR_SET_PDEATHSIG` will not do: it follows the thread that started us, and FLARE starts jobs from threads
  that end.)
"""

from __future__ import annotations

import os
import runpy
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

from nfl_cluster.flare.names import TLS_1_3_ONLY, TLS_VARIABLE

_LOOK_S = 0.2  # where the system has no pidfd


def die_with_parent(*, die: Callable[[], None] | None = None) -> threading.Thread:
    """Kill this process as soon as the one that started it is gone.

    Args:
        die: What to do then; by default SIGKILL to this process, because FLARE's own shutdown can hang.
    """
    parent = os.getppid()
    thread = threading.Thread(target=_watch, args=(parent, die or _kill_self), name="leash", daemon=True)
    thread.start()
    return thread


def _watch(parent: int, die: Callable[[], None]) -> None:
    try:
        descriptor = os.pidfd_open(parent)
    except (AttributeError, OSError):  # not this system, or gone already
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        die()
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while os.getppid() == parent and not poll.poll(60_000):
        pass
    die()


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Become the FLARE module named by the first argument."""
    os.environ[TLS_VARIABLE] = TLS_1_3_ONLY
    die_with_parent()
    module = sys.argv[1]
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
