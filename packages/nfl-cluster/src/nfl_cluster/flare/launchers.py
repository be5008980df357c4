"""FLARE's launchers of job processes, made safe for folders with spaces, and with a leash.

FLARE 2.9 joins the job process's arguments with spaces and splits the result as a shell would; a path with a space
falls apart. These launchers quote the values before they are joined. And they start the process through
`nfl_cluster.flare.run`, so that it never outlives its parent.
"""

from __future__ import annotations

import shlex
import sys

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

_PATHS = (JobProcessArgs.WORKSPACE, JobProcessArgs.STARTUP_DIR, JobProcessArgs.APP_ROOT)


class ClientLauncher(ClientProcessJobLauncher):
    """Start the job process of a client site."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """Return the command line, with every path quoted and on the leash."""
        _quote_paths(fl_ctx)
        return on_leash(str(super().get_command(job_meta, fl_ctx)))


class ServerLauncher(ServerProcessJobLauncher):
    """Start the job process of the server site."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """Return the command line, with every path quoted and on the leash."""
        _quote_paths(fl_ctx)
        return on_leash(str(super().get_command(job_meta, fl_ctx)))


def on_leash(command: str) -> str:
    """Turn `PYTHON [-u] -m MODULE ...` into the same through `nfl_cluster.flare.run`.

    Raises:
        ValueError: FLARE's command has another form.
    """
    head, mark, tail = command.removeprefix(sys.executable).partition("-m ")
    if not command.startswith(sys.executable) or not mark or head.strip() not in {"", "-u"}:
        raise ValueError(f"FLARE's command is {command[:120]!r}, expected `{sys.executable} -m MODULE ...`")
    return f"{shlex.quote(sys.executable)} -u -m nfl_cluster.flare.run {tail}"


def _quote_paths(fl_ctx: FLContext) -> None:
    arguments = dict(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS))
    for name in _PATHS:
        if name in arguments:
            flag, value = arguments[name]
            arguments[name] = (flag, shlex.quote(str(value)))
    fl_ctx.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)
