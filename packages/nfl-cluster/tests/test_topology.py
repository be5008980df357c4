from __future__ import annotations

from pathlib import Path

from nfl_cluster.topology import fleet_processes
from nfl_core.config import FleetConfig


def test_a_fleet_has_a_service_and_a_courier_for_each_site_and_one_job_keeper() -> None:
    config = FleetConfig.model_validate(
        {
            "fleet": {"name": "home"},
            "leaves": [
                {"site": "leaf-1", "region": "kitchen", "port": 1},
                {"site": "leaf-2", "region": "garden", "port": 2},
            ],
        }
    )
    specs = {spec.name: spec for spec in fleet_processes(config, Path("/a home"))}
    sites = ("root", "keeper", "leaf-1", "leaf-2")
    assert sorted(specs) == sorted(
        [*(f"{site}-{part}" for site in sites for part in ("flare", "service")), "flare-jobs"]
    )
    for site in sites:
        assert specs[f"{site}-flare"].group == specs[f"{site}-service"].group == site
        assert specs[f"{site}-flare"].env["NFL_SITE"] == site
    assert specs["leaf-2-flare"].env["NFL_MAILBOX"] == "/a home/leaves/leaf-2/mailbox"
    assert specs["root-flare"].ready_port == ("127.0.0.1", 18441)
    assert all(spec.after == () for spec in specs.values())
    assert all(spec.says_ready for name, spec in specs.items() if name.endswith("-service"))
