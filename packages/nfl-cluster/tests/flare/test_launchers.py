from __future__ import annotations

import shlex
import sys

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs

from nfl_cluster.flare.launchers import ClientLauncher, ServerLauncher, on_leash

FOLDER = "/a home/with 'quotes' and $signs"


def context(module: str) -> FLContext:
    fl_ctx = FLContext()
    arguments = {
        JobProcessArgs.EXE_MODULE: ("-m", module),
        JobProcessArgs.WORKSPACE: ("-m", FOLDER),
        JobProcessArgs.STARTUP_DIR: ("-w", f"{FOLDER}/startup"),
        JobProcessArgs.APP_ROOT: ("-r", f"{FOLDER}/app"),
        JobProcessArgs.JOB_ID: ("-n", "job-1"),
    }
    fl_ctx.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)
    return fl_ctx


@pytest.mark.parametrize("launcher", [ClientLauncher, ServerLauncher])
def test_paths_with_spaces_stay_whole_and_jobs_are_on_the_leash(launcher: type[ClientLauncher]) -> None:
    argv = shlex.split(launcher().get_command({}, context("nvflare.some_module")))
    assert argv[:5] == [sys.executable, "-u", "-m", "nfl_cluster.flare.run", "nvflare.some_module"]
    assert FOLDER in argv
    assert "job-1" in argv


def test_a_command_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        on_leash("/bin/sh -c 'python -m nvflare'")
