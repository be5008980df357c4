"""Make FLARE's start-up kits for a fleet: one server (the root), a client for each leaf and the keeper, one admin.

FLARE's own provisioning makes the kits (its CA, its certificates, its signatures). What is ours:

- the local policy of each site lists our courier classes and nothing else, so FLARE refuses every other component;
- job and snapshot stores live in the kit, not in a folder that fleets of one machine would share.

    >>> provision(config, home / "flare")                                          # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from nfl_cluster.flare.names import (
    ADMIN,
    CLIENT_LAUNCHER,
    FLARE_PROJECT,
    LOOPBACK_BUILDER,
    ORGANISATION,
    ROOT_COURIER,
    SERVER_LAUNCHER,
    SITE_COURIER,
)
from nfl_core.config import FleetConfig
from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ConfigError, NflError

_BUILDERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("nvflare.lighter.impl.workspace.WorkspaceBuilder", {"template_file": ["master_template.yml"]}),
    ("nvflare.lighter.impl.static_file.StaticFileBuilder", {"config_folder": "config", "scheme": "grpc"}),
    ("nvflare.lighter.impl.cert.CertBuilder", {}),
    (LOOPBACK_BUILDER, {}),
    ("nvflare.lighter.impl.signature.SignatureBuilder", {}),
)
_STORAGE = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"


class ProvisionError(NflError):
    """FLARE could not make the start-up kits."""

    code = "flare.provision"
    hint = "read FLARE's message above the error; remove the folder flare/ of the fleet's home to start over"


def provision(config: FleetConfig, folder: Path) -> None:
    """Make one kit folder a site below `folder`; do nothing when they are there.

    Args:
        config: The fleet, with every port decided.
        folder: Made when it is missing; may contain spaces.

    Raises:
        ConfigError: The root's FLARE port is not decided.
        ProvisionError: FLARE refused or died.
    """
    if (folder / "complete").exists():
        return
    if not config.root.flare_port:
        raise ConfigError("root.flare_port is 0, expected a port before FLARE kits are made")
    making = folder / "making"
    shutil.rmtree(making, ignore_errors=True)
    make_folder(making)
    # FLARE reads YAML, of which JSON is a part.
    write_file(making / "project.yml", json.dumps(_project(config), indent=1).encode())
    done = subprocess.run(
        [sys.executable, "-m", "nvflare.lighter.provision", "-p", str(making / "project.yml"), "-w", str(making)],
        capture_output=True,
        text=True,
        check=False,
        cwd=making,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    kits = making / FLARE_PROJECT / "prod_00"
    sites = [config.root.site, config.keeper.site, *(leaf.site for leaf in config.leaves), ADMIN]
    missing = [site for site in sites if not (kits / site / "startup").is_dir()]
    if done.returncode or missing:
        raise ProvisionError(
            f"FLARE made no kit for {', '.join(missing) or 'any site'}: {(done.stderr or done.stdout).strip()[-400:]}"
        )
    for site in sites:
        shutil.rmtree(folder / site, ignore_errors=True)
        (kits / site).rename(folder / site)
        if site != ADMIN:
            local = _server_policy(folder / site) if site == config.root.site else _client_policy()
            write_file(folder / site / "local/resources.json", json.dumps(local, indent=1).encode())
    shutil.rmtree(making)
    write_file(folder / "complete", b"")


def _project(config: FleetConfig) -> dict[str, object]:
    root = {
        "name": config.root.site,
        "type": "server",
        "org": ORGANISATION,
        "fed_learn_port": config.root.flare_port,
        "host_names": [config.root.host, "localhost"],
        "default_host": config.root.host,
    }
    sites = [config.keeper.site, *(leaf.site for leaf in config.leaves)]
    clients = [{"name": site, "type": "client", "org": ORGANISATION} for site in sites]
    admin = {"name": ADMIN, "type": "admin", "org": ORGANISATION, "role": "project_admin"}
    return {
        "api_version": 3,
        "name": FLARE_PROJECT,
        "description": f"sites of the fleet {config.fleet.name}",
        "participants": [root, *clients, admin],
        "builders": [{"path": path, "args": arguments} for path, arguments in _BUILDERS],
    }


def _policy(courier: str) -> dict[str, object]:
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [courier],
        "allow_log_streaming": False,
    }


def _server_policy(kit: Path) -> dict[str, object]:
    component = "nvflare.app_common"
    return {
        **_policy(ROOT_COURIER),
        "servers": [
            {"admin_storage": "transfer", "max_num_clients": 1000, "heart_beat_timeout": 60, "admin_timeout": 3.0}
        ],
        "snapshot_persistor": {
            "path": f"{component}.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": {
                "uri_root": "/",
                "storage": {"path": _STORAGE, "args": {"root_dir": str(kit / "snapshots"), "uri_root": "/"}},
            },
        },
        "components": [
            {
                "id": "job_scheduler",
                "path": f"{component}.job_schedulers.job_scheduler.DefaultJobScheduler",
                "args": {"max_jobs": 4, "min_schedule_interval": 0.5, "max_schedule_interval": 1.0},
            },
            {
                "id": "job_manager",
                "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                "args": {"uri_root": str(kit / "jobs"), "job_store_id": "job_store"},
            },
            {"id": "job_store", "path": _STORAGE},
            {"id": "process_launcher", "path": SERVER_LAUNCHER, "args": {}},
        ],
    }


def _client_policy() -> dict[str, object]:
    component = "nvflare.app_common"
    return {
        **_policy(SITE_COURIER),
        "client": {"retry_timeout": 30},
        "components": [
            {
                "id": "resource_manager",
                "path": f"{component}.resource_managers.gpu_resource_manager.GPUResourceManager",
                "args": {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0, "expiration_period": 300},
            },
            {
                "id": "resource_consumer",
                "path": f"{component}.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
                "args": {},
            },
            {"id": "process_launcher", "path": CLIENT_LAUNCHER, "args": {}},
        ],
    }
