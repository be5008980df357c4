"""Be the process of `nfl device run`: signals, the ready line, the end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from nfl_core.durable import make_folder
from nfl_edge.host import Host, Wiring


def serve(folders: Sequence[Path], *, tap_folder: Path | None = None, leaf_address: str | None = None) -> int:
    """Run the devices in `folders` until SIGTERM or SIGINT. Returns the exit code.

    Args:
        folders: Folders of enrolled devices.
        tap_folder: Where to record outgoing messages; None: nowhere.
        leaf_address: Leaf to talk to instead of the enrolled address.

    Raises:
        DeviceFolderError: A folder holds no enrolled device.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if tap_folder is not None:
        make_folder(tap_folder)
    return asyncio.run(_serve(folders, Wiring(tap_folder=tap_folder, leaf_address=leaf_address)))


async def _serve(folders: Sequence[Path], wiring: Wiring) -> int:
    host = Host(folders, wiring=wiring)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.stop)
    running = asyncio.ensure_future(host.run())
    ready = asyncio.ensure_future(host.ready())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        sys.stdout.write(json.dumps({"ready": True, "devices": host.device_ids, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
    ready.cancel()
    await running
    return 0
