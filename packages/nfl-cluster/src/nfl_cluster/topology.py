"""Which processes a fleet on one machine has, and in which order they start."""

from __future__ import annotations

import sys
from pathlib import Path

from nfl_cluster.flare.launch import flare_environment, jobs_command, parent_command
from nfl_cluster.processes import ProcessSpec
from nfl_cluster.service import SiteFolder
from nfl_core.config import FleetConfig

# One thread of arithmetic a process, and two heaps instead of eight a core: sites share small machines.
LEAN = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def fleet_processes(config: FleetConfig, home: Path) -> list[ProcessSpec]:
    """Return all processes of a fleet whose sites share this machine.

    FLARE comes first, because it takes longest to get going. Nothing waits for anything: FLARE's clients and its
    administrator load while its server loads and then try again, which is 4 s faster than starting them in turn.
    The group of a process is its site.
    """
    return [*flare_processes(config, home), *service_processes(config, home)]


def flare_processes(config: FleetConfig, home: Path) -> list[ProcessSpec]:
    """Return FLARE's parents and the keeper of its courier job; they need FLARE's kits and nothing else."""
    root, folders = config.root.site, _folders(config, home)
    flare = [_flare_parent(config, home, site, folder) for site, folder in folders.items()]
    jobs = ProcessSpec(
        name="flare-jobs",
        group=root,
        argv=tuple(jobs_command(home)),
        env=flare_environment(root, folders[root].mailbox),
    )
    return [*flare, jobs]


def service_processes(config: FleetConfig, home: Path) -> list[ProcessSpec]:
    """Return the services of all sites; they need the whole home."""
    return [_service(config, home, site) for site in _folders(config, home)]


def _folders(config: FleetConfig, home: Path) -> dict[str, SiteFolder]:
    folders = {config.root.site: SiteFolder.of_root(home), config.keeper.site: SiteFolder.of_keeper(home)}
    folders.update({leaf.site: SiteFolder.of_leaf(home, leaf.site) for leaf in config.leaves})
    return folders


def _flare_parent(config: FleetConfig, home: Path, site: str, folder: SiteFolder) -> ProcessSpec:
    root = config.root.site
    is_root = site == root
    return ProcessSpec(
        name=f"{site}-flare",
        group=site,
        argv=tuple(parent_command(home / "flare" / site, site=site, is_root=is_root)),
        env=flare_environment(site, folder.mailbox),
        ready_port=(config.root.host, config.root.flare_port) if is_root else None,
    )


def _service(config: FleetConfig, home: Path, site: str) -> ProcessSpec:
    module = {config.root.site: "root", config.keeper.site: "keeper"}.get(site, "leaf")
    which = ("--site", site) if module == "leaf" else ()
    return ProcessSpec(
        name=f"{site}-service",
        group=site,
        argv=(sys.executable, "-u", "-m", f"nfl_cluster.{module}", "--home", str(home), *which),
        env=LEAN,
        says_ready=True,
    )
