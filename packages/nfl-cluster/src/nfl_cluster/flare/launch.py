"""Command lines of FLARE's long-lived parent processes, in the foreground, so that our supervisor owns their pids.

FLARE's own `start.sh` makes daemons with a watchdog that polls every five seconds; our supervisor does that better.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nfl_cluster.flare.names import MAILBOX_VARIABLE, ORGANISATION, SITE_VARIABLE, TLS_1_3_ONLY, TLS_VARIABLE

_SERVER = "nvflare.private.fed.app.server.server_train"
_CLIENT = "nvflare.private.fed.app.client.client_train"


def parent_command(kit: Path, *, site: str, is_root: bool) -> list[str]:
    """Return the command that runs the FLARE parent of a site in the foreground.

    Args:
        kit: The site's start-up kit.
        site: Its name.
        is_root: Whether it is the FLARE server.
    """
    module, settings = (_SERVER, "fed_server.json") if is_root else (_CLIENT, "fed_client.json")
    identity = [] if is_root else [f"uid={site}"]
    return [
        *(sys.executable, "-u", "-m", "nfl_cluster.flare.run", module, "-m", str(kit), "-s", settings),
        *("--set", "secure_train=true", *identity, f"org={ORGANISATION}", "config_folder=config"),
    ]


def jobs_command(home: Path) -> list[str]:
    """Return the command that keeps the courier job running, one a fleet, beside the root."""
    return [sys.executable, "-u", "-m", "nfl_cluster.flare.jobs", "--home", str(home)]


def flare_environment(site: str, mailbox: Path) -> dict[str, str]:
    """Return what a FLARE process needs in its environment beyond the supervisor's own; job processes inherit it."""
    return {
        SITE_VARIABLE: site,
        MAILBOX_VARIABLE: str(mailbox),
        TLS_VARIABLE: TLS_1_3_ONLY,
        "MALLOC_ARENA_MAX": "2",  # FLARE has many threads; two arenas halve its resident memory
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
