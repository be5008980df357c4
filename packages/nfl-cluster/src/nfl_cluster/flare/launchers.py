"""FLARE's launchers of job processes, made safe for folders whose names hold spaces.

FLARE 2.9 joins the job process's arguments with spaces and splits the result as a shell would; a path with a space falls
apart. These launchers quote the values before they are joined.
"""

from __future__ import annotations

import shlex

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

_PATHS = (JobProcessArgs.WORKSPACE, JobProcessArgs.STARTUP_DIR, JobProcessArgs.APP_ROOT)


class ClientLauncher(ClientProcessJobLauncher):
    """Start the job process of a client site."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """Return the command line, with every path quoted."""
        _quote_paths(fl_ctx)
        return str(super().get_command(job_meta, fl_ctx))


class ServerLauncher(ServerProcessJobLauncher):
    """Start the job process of the server site."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """Return the command line, with every path quoted."""
        _quote_paths(fl_ctx)
        return str(super().get_command(job_meta, fl_ctx))


def _quote_paths(fl_ctx: FLContext) -> None:
    arguments = dict(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS))
    for name in _PATHS:
        if name in arguments:
            flag, value = arguments[name]
            arguments[name] = (flag, shlex.quote(str(value)))
    fl_ctx.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)
