from __future__ import annotations

import json
from pathlib import Path

import pytest

from nfl_cluster.flare.jobs import JobKeeper, write_job
from nfl_cluster.flare.names import ROOT_COURIER, SITE_COURIER
from nfl_cluster.flare.watch import START_S, Seen

SITES = frozenset({"keeper", "leaf-1", "leaf-2"})


class World:
    """FLARE's server and parents as far as its administrator sees them."""

    def __init__(self) -> None:
        self.connected = set(SITES)
        self.couriers: dict[str, set[str]] = {}
        self.aborted: list[str] = []
        self.num_jobs = 0
        self.now = 0.0

    def look(self, job: str | None) -> Seen:
        here = self.couriers.get(job or "", set())
        return Seen(
            connected=frozenset(self.connected),
            answering=frozenset(self.connected),
            carrying=frozenset(here - {"root"}),
            root_carries="root" in here,
        )

    def submit(self, folder: Path) -> str:
        self.num_jobs += 1
        members = json.loads((folder / "meta.json").read_text())["deploy_map"]["app"]
        self.couriers[f"job-{self.num_jobs}"] = {"root", *members[1:]}
        return f"job-{self.num_jobs}"

    def abort(self, job: str) -> None:
        self.aborted.append(job)
        self.couriers.pop(job, None)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def said() -> list[dict[str, object]]:
    return []


@pytest.fixture
def keeper(world: World, said: list[dict[str, object]], tmp_path: Path) -> JobKeeper:
    return JobKeeper(work=tmp_path / "job", root="root", sites=SITES, clock=lambda: world.now, say=said.append)


def look(keeper: JobKeeper, world: World, times: int = 1) -> None:
    for _ in range(times):
        world.now += 1
        keeper.watch(world)


def test_one_job_is_enough(keeper: JobKeeper, world: World, said: list[dict[str, object]]) -> None:
    look(keeper, world, 50)
    assert world.num_jobs == 1
    assert [one["event"] for one in said] == ["job-submitted", "job-running"]


@pytest.mark.parametrize("site", ["root", *sorted(SITES)])
def test_a_killed_courier_gets_a_new_job_and_the_old_one_ends(keeper: JobKeeper, world: World, site: str) -> None:
    look(keeper, world, 3)
    world.couriers["job-1"].discard(site)
    look(keeper, world)
    assert world.num_jobs == 2
    assert world.aborted == ["job-1"]
    look(keeper, world, 30)
    assert world.num_jobs == 2


def test_a_leaf_that_is_away_is_gone_without_and_joins_when_it_is_back(keeper: JobKeeper, world: World) -> None:
    world.connected.discard("leaf-2")
    look(keeper, world, 20)
    assert world.couriers["job-1"] == {"root", "keeper", "leaf-1"}
    world.connected.add("leaf-2")
    look(keeper, world, int(START_S) + 1)
    assert world.couriers["job-2"] == {"root", *SITES}
    assert world.aborted == ["job-1"]


def test_a_restarted_server_gets_a_new_job(keeper: JobKeeper, world: World) -> None:
    look(keeper, world, 3)
    keeper.forget()
    look(keeper, world, 2)
    assert world.num_jobs == 2


def test_jobs_that_cannot_run_do_not_pile_up(keeper: JobKeeper, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "submit", lambda _: setattr(world, "num_jobs", world.num_jobs + 1) or "broken")
    look(keeper, world, 600)
    assert 3 <= world.num_jobs <= 15


def test_the_job_names_our_classes_alone(tmp_path: Path) -> None:
    folder = write_job(tmp_path / "job", members=frozenset({"leaf-1"}), sites=SITES, root="root")
    server = json.loads((folder / "app/config/config_fed_server.json").read_text())
    client = json.loads((folder / "app/config/config_fed_client.json").read_text())
    assert [one["path"] for one in server["workflows"]] == [ROOT_COURIER]
    assert [one["executor"]["path"] for one in client["executors"]] == [SITE_COURIER]
    assert server["components"] == client["components"] == []
    assert json.loads((folder / "meta.json").read_text())["deploy_map"] == {"app": ["server", "leaf-1"]}
