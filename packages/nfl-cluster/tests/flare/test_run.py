from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from nfl_cluster.flare import run

_CHILD = "from nfl_cluster.flare.run import die_with_parent\ndie_with_parent()\nimport time\ntime.sleep(60)"
# The parent starts its child from a thread that ends at once: the trap of PR_SET_PDEATHSIG.
_PARENT = f"""
import subprocess, sys, threading, time
def start():
    child = subprocess.Popen([sys.executable, "-c", {_CHILD!r}])
    print(child.pid, flush=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(60)
"""


def test_a_child_lives_as_long_as_its_parent_and_no_longer() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)  # long after the thread that started it has ended
        assert child.is_running()
        parent.kill()
        child.wait(timeout=5)
    assert not psutil.pid_exists(child.pid)


def test_a_system_without_pidfd_is_watched_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(run, "_LOOK_S", 0.01)
    parents = iter([7, 7, 7])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    died = threading.Event()
    run.die_with_parent(die=died.set).join(5)
    assert died.is_set()
