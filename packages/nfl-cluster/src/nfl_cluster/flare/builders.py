"""One more step in FLARE's provisioning: a root on loopback listens on loopback.

FLARE writes `name:port` as the server's target and listens everywhere, unless the target is a loopback address. The
kit's files are signed, so the target is changed here, between FLARE's own steps, before the last one signs.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from nvflare.lighter.constants import ProvFileName
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import Builder


class LoopbackBuilder(Builder):
    """Let the server listen on the loopback address that clients connect to."""

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Change the target in the server's start-up file."""
        server = project.get_server()
        host = server.get_default_host()
        if not is_loopback(host):
            return
        path = Path(ctx.get_kit_dir(server)) / ProvFileName.FED_SERVER_JSON
        settings = json.loads(path.read_text())
        for one in settings["servers"]:
            one["service"]["target"] = f"{host}:{one['service']['target'].rpartition(':')[2]}"
        path.write_text(json.dumps(settings, indent=2))


def is_loopback(host: str) -> bool:
    """Return whether an address is one of this machine alone; False for every name but localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
