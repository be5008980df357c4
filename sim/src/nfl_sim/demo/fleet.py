"""Make and run the demo's fleet with the product's own means: init, enrolment by token, supervised processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfl_cluster.init import init_fleet, mint_token
from nfl_cluster.processes import ProcessSpec
from nfl_cluster.topology import LEAN
from nfl_core.config import FleetConfig
from nfl_core.ids import DeviceId
from nfl_edge.enrol import enrol
from nfl_edge.folder import DeviceFolder
from nfl_sim.data import DataSet, load_images, share_out, write_owner, write_shadow

CONCENTRATION, IMAGES_PER_OWNER = 0.5, 300
LEAVES = ("leaf-1", "leaf-2")
HOSTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFleet:
    """A fleet of the demo.

    Attributes:
        home: Its folder.
        config: What it is.
        devices: Ids, in order; device i hangs on leaf i modulo the number of leaves.
        data: The data set's name and source, for people.
    """

    home: Path
    config: FleetConfig
    devices: tuple[DeviceId, ...]
    data: str

    @property
    def taps(self) -> Path:
        """What devices send and put in is recorded here."""
        return self.home / "taps"

    @property
    def control(self) -> Path:
        """Names of the devices that attack now, one a line."""
        return self.home / "run/attackers"

    def folder(self, device: DeviceId) -> Path:
        """Return a device's folder."""
        return self.home / "devices" / device

    def leaf_of(self, device: DeviceId) -> str:
        """Return the leaf that a device hangs on."""
        return LEAVES[self.devices.index(device) % len(LEAVES)]


def config_for_demo() -> FleetConfig:
    """Return the demo's fleet.toml: small batches and short waits, everything else as the product's defaults are."""
    return FleetConfig.model_validate(
        {
            "fleet": {"name": "demo"},
            "leaves": [{"site": leaf, "region": f"region-{number}"} for number, leaf in enumerate(LEAVES, 1)],
            "learning": {"batch_size": 16, "epochs_per_update": 3, "learning_rate": 0.05, "refit_steps": 20},
            "privacy": {"n_min": 3, "batch_size": 5, "batch_max": 8, "window_s": 3.0},
            "keeper": {"n_min": 3},
            "rollout": {
                "waves": [0.2, 1.0],
                "min_soak_s": 0.3,
                "wave_deadline_s": 20.0,
                "max_failure_fraction": 0.6,
                "min_reports": 3,
            },
            "gates": {"max_drop_points": 1.0},
            "root": {
                "batches_per_version": 4,
                "enrol_port": 0,
                "flare_port": 0,
                "admin_port": 0,
            },
        }
    )


def make_fleet(
    home: Path,
    *,
    cache: Path,
    num_devices: int,
    seed: int,
    say: Callable[[str], None],
    kits_made: Callable[[FleetConfig], None],
) -> DemoFleet:
    """Make a fleet: data for its owners and its root, keys, certificates, start-up kits, first version.

    Args:
        home: Folder of the fleet.
        cache: Where the data set is kept between runs.
        num_devices: How many devices.
        seed: Decides who owns which images.
        say: Takes one line of progress.
        kits_made: Called when FLARE may start.

    Raises:
        NflError: Whatever a step says; run again to make it anew.
    """
    data = load_images(cache, say=say)
    say(f"data: {len(data.y_N):,} images of {data.name} ({data.source})")
    devices = tuple(DeviceId(f"robot-{number:02d}") for number in range(1, num_devices + 1))
    _share(home, data, devices=devices, seed=seed)
    config = init_fleet(home, config_for_demo(), say=say, kits_made=kits_made)
    return DemoFleet(
        home=home,
        config=config,
        devices=devices,
        data=f"real {data.name}" if data.name != "digits" else "scikit-learn's digits",
    )


def _share(home: Path, data: DataSet, *, devices: Sequence[DeviceId], seed: int) -> None:
    generator = np.random.default_rng(seed)
    shares = share_out(
        data,
        num_owners=len(devices),
        concentration=CONCENTRATION,
        images_per_owner=IMAGES_PER_OWNER,
        generator=generator,
    )
    for device, owner in zip(devices, shares.owners, strict=True):
        write_owner(DeviceFolder(home / "devices" / device).samples, data, owner)
    write_shadow(home / "root/heldout.safetensors", data, shares.heldout)
    write_shadow(home / "root/shadow.safetensors", data, shares.shadow)


def enrol_devices(fleet: DemoFleet) -> None:
    """Enrol all devices at the root that runs: each makes its keys and uses a one-time token up.

    Raises:
        NflError: The root refuses or does not answer.
    """
    address = f"{fleet.config.root.host}:{fleet.config.root.enrol_port}"
    ca_pem = (fleet.home / "root/ca/ca.pem").read_bytes()

    def enrol_one(device: DeviceId) -> None:
        token = mint_token(fleet.home, device, leaf=fleet.leaf_of(device))
        enrol(fleet.folder(device), token=token, root=address, ca_pem=ca_pem)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enrol_one, fleet.devices))


def device_hosts(fleet: DemoFleet) -> list[ProcessSpec]:
    """Return the processes that run the devices, each some of them."""
    specs = []
    for number in range(HOSTS):
        mine = [str(fleet.folder(device)) for device in fleet.devices[number::HOSTS]]
        command = [
            sys.executable,
            "-m",
            "nfl_sim.demo.host",
            "--taps",
            str(fleet.taps),
            "--control",
            str(fleet.control),
            *mine,
        ]
        specs.append(
            ProcessSpec(
                name=f"device-host-{number + 1}", group=f"device-host-{number + 1}", argv=tuple(command), env=LEAN
            )
        )
    return specs


def baselines(fleet: DemoFleet, *, num_rounds: int, seed: int) -> ProcessSpec:
    """Return the process of the two learners that the nested ones are measured against."""
    out = fleet.home / "run/baselines.jsonl"
    command = [
        sys.executable,
        "-m",
        "nfl_sim.demo.baselines",
        "--home",
        str(fleet.home),
        "--rounds",
        str(num_rounds),
        "--out",
        str(out),
        "--seed",
        str(seed),
    ]
    return ProcessSpec(name="baselines", group="baselines", argv=tuple(command), env=LEAN, once=True, nice=19)
