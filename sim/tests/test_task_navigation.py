"""Robots in small worlds: geometry, expert, simulator, samples that do not leak, and the closed loop."""

from __future__ import annotations

import builtins
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from nfl_core.errors import ConfigError, ContentError
from nfl_core.learning import create_model, schema_of
from nfl_sim.tasks.navigation import TASK, data, drive, simulator
from nfl_sim.tasks.navigation.data import Plan, ask_expert, digest_of_world, load_seed, observe, plans_of
from nfl_sim.tasks.navigation.expert import Expert, actions_of
from nfl_sim.tasks.navigation.model import LidarNet
from nfl_sim.tasks.navigation.picture import picture
from nfl_sim.tasks.navigation.simulator import NUM_BEAMS, RANGE_M, Robot, Simulation
from nfl_sim.tasks.navigation.worlds import FAMILIES, SIZE_M, World, make_world

EMPTY = World(family="open", circles=(), boxes=(), start=(1.0, 4.0, 0.0), goal=(7.0, 4.0))
ROBOT = Robot(name="open-0", family="open", noise_m=0.0, yaw=0.0)
AHEAD = NUM_BEAMS // 2  # beams start behind the robot


def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SPLITS", {"train": 6, "holdout": 3, "test": 4})


def test_clearance_is_the_signed_distance_to_walls_circles_and_turned_boxes() -> None:
    world = replace(EMPTY, circles=((4.0, 4.0, 1.0),), boxes=((4.0, 7.0, 2.0, 0.5, np.pi / 2),))
    points = np.array([[0.5, 4.0], [2.0, 4.0], [4.0, 4.0], [4.5, 7.0], [4.0, 7.0]])
    np.testing.assert_allclose(world.clearance(points), [0.5, 1.0, -1.0, 0.25, -0.25], atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_worlds_follow_from_their_generator_and_keep_start_and_goal_clear(name: str) -> None:
    family = FAMILIES[name]
    one, same, other = (make_world(family, generator=np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == same != other
    assert one.clearance(np.array([one.start[:2], one.goal])).min() >= 0.4
    assert np.hypot(one.start[0] - one.goal[0], one.start[1] - one.goal[1]) >= family.min_route_m


def test_the_expert_goes_round_what_stands_between_it_and_the_goal() -> None:
    wall = replace(EMPTY, boxes=((4.0, 3.0, 6.0, 0.15, np.pi / 2),))
    free, blocked = (Expert(world, FAMILIES["open"]) for world in (EMPTY, wall))
    start = np.array([EMPTY.start[:2]])
    assert free.cost_to_go(start)[0] == pytest.approx(6.0, abs=0.3)
    assert blocked.cost_to_go(start)[0] > 8.0
    straight = next(place for place, action in enumerate(actions_of(FAMILIES["open"])) if tuple(action) == (1.0, 0.0))
    assert free.choose(EMPTY.start) == straight


def test_a_walled_in_goal_is_not_solvable() -> None:
    shut = replace(EMPTY, boxes=((4.0, 4.0, SIZE_M, 0.15, np.pi / 2),))
    assert not Expert(shut, FAMILIES["open"]).is_solvable
    assert Expert(EMPTY, FAMILIES["open"]).is_solvable


def test_the_lidar_sees_an_obstacle_where_its_mount_says() -> None:
    left = replace(EMPTY, start=(4.0, 4.0, 0.0), goal=(7.0, 7.0), circles=((4.0, 5.5, 0.5),))  # 1 m to the left
    quarter = NUM_BEAMS // 4
    upright = Simulation(left, ROBOT, seed=0).scan()
    hanging = Simulation(left, replace(ROBOT, is_upside_down=True), seed=0).scan()
    backwards = Simulation(left, replace(ROBOT, yaw=np.pi), seed=0).scan()
    assert upright.min() == pytest.approx(1.0, abs=0.05)
    assert abs(int(upright.argmin()) - (AHEAD + quarter)) <= 1
    assert abs(int(hanging.argmin()) - (AHEAD - quarter)) <= 1
    assert abs(int(backwards.argmin()) - (AHEAD - quarter)) <= 1
    assert upright[AHEAD - quarter] == pytest.approx(4.0, abs=0.1)
    assert upright.max() <= RANGE_M


def test_a_robot_drives_arrives_and_collides() -> None:
    simulation = Simulation(replace(EMPTY, goal=(1.5, 4.0)), ROBOT, seed=0)
    simulation.step(1.0, 0.0)
    assert simulation.pose == pytest.approx((1.2, 4.0, 0.0))
    assert simulation.has_arrived
    crash = Simulation(replace(EMPTY, circles=((1.7, 4.0, 0.4),)), ROBOT, seed=0)
    crash.step(1.0, 0.0)
    assert crash.has_collided
    assert crash.has_ended
    assert not crash.has_arrived


def test_a_discarded_simulation_leaves_nothing_for_the_collector_to_lock() -> None:
    simulation = Simulation(EMPTY, ROBOT, seed=0)
    assert not simulation._env.logger._finalizer.alive  # with it alive, a collection within loguru's lock hangs


def test_without_the_simulator_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name == "irsim":
            raise ImportError("not here")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ContentError, match="IR-SIM is not installed") as caught:
        simulator.Simulation(EMPTY, ROBOT, seed=0)
    assert "ir-sim" in caught.value.hint


def test_an_observation_is_nearness_and_the_way_to_the_goal() -> None:
    seen = observe(Simulation(EMPTY, ROBOT, seed=0), EMPTY.goal)
    assert seen.shape == TASK.input_shape
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen[0, 0, NUM_BEAMS:], [6.0 / SIZE_M, 1.0, 0.0], atol=1e-6)
    assert seen[0, 0, 0] == pytest.approx(1 - 1.0 / RANGE_M, abs=1e-3)  # a wall one metre behind


def test_no_world_is_in_two_splits_or_with_two_robots() -> None:
    plans = plans_of(7, robots_per_family=2)
    digests = [
        digest_of_world(world) for plan in plans for split in data.SPLITS for world in islice(plan.worlds(split), 2)
    ]
    assert len(digests) == len(plans) * len(data.SPLITS) * 2
    assert len(set(digests)) == len(digests)


def test_samples_follow_from_the_seed_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tiny(monkeypatch)
    lines: list[str] = []
    first = load_seed(tmp_path / "a", seed=1, robots_per_family=1, say=lines.append)
    assert [owner.region for owner in first.owners] == list(FAMILIES)
    assert lines[-1] == "navigation: 4 of 4 robots have samples"
    again, other = (load_seed(tmp_path / name, seed=seed, robots_per_family=1) for name, seed in (("b", 1), ("a", 2)))
    assert all(torch.equal(a.train.x, b.train.x) for a, b in zip(first.owners, again.owners, strict=True))
    assert not all(torch.equal(a.train.x, b.train.x) for a, b in zip(first.owners, other.owners, strict=True))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("driven again")

    monkeypatch.setattr(data, "ask_expert", never)
    kept = load_seed(tmp_path / "a", seed=1, robots_per_family=1)
    assert all(torch.equal(a.test.y, b.test.y) for a, b in zip(first.owners, kept.owners, strict=True))


def test_a_cut_file_is_driven_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tiny(monkeypatch)
    first = load_seed(tmp_path, seed=1, robots_per_family=1)
    file = next(tmp_path.rglob("open-0.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    again = load_seed(tmp_path, seed=1, robots_per_family=1)
    assert file.read_bytes() == whole
    assert torch.equal(first.owners[2].train.x, again.owners[2].train.x)


def test_samples_lie_about_the_expert_s_way_and_are_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SCATTER_M", 0.0)
    monkeypatch.setattr(data, "SCATTER_RAD", 0.0)
    plan = plans_of(0, robots_per_family=1)[2]
    x, y = ask_expert(plan, "train", num_samples=5)
    world = next(plan.worlds("train"))
    expert = Expert(world, FAMILIES[plan.robot.family])
    way = expert.way(max_steps=100)
    assert tuple(way[0]) == world.start
    assert x.shape == (5, *TASK.input_shape)
    assert set(y.tolist()) <= {expert.choose(tuple(pose)) for pose in way}
    distances = np.hypot(*(way[:, :2] - world.goal).T)
    assert np.abs(x[:, 0, 0, NUM_BEAMS, None] * SIZE_M - distances).min(axis=1).max() < 1e-5


def test_the_closed_loop_counts_arrivals_and_collisions() -> None:
    plan = plans_of(0, robots_per_family=1)[2]
    assert plan.robot.family == "open"
    good = drive.drive(drive.expert_of(plan), plan, num_episodes=1)
    still = drive.drive(lambda *_: 2, plan, num_episodes=1, max_steps=2)
    assert (good.success_fraction, good.collision_fraction) == (1.0, 0.0)
    assert (still.success_fraction, still.collision_fraction) == (0.0, 0.0)
    both = good + still
    assert both.success_fraction == 0.5
    assert len(still.episodes[0].path) == 3


def test_a_fresh_model_drives_without_failing_and_a_picture_shows_it() -> None:
    plan: Plan = plans_of(0, robots_per_family=1)[2]
    module = create_model(TASK.model, num_classes=TASK.num_classes, input_shape=TASK.input_shape, seed=0)
    outcome = drive.drive(drive.policy_of(module), plan, num_episodes=1, max_steps=3)
    svg = picture({"fresh": outcome.episodes[0]})
    assert svg.startswith("<svg")
    assert "fresh" in svg
    assert len(svg) < 20_000


def test_the_model_has_its_four_rooms_and_sees_the_scan_as_a_ring() -> None:
    module = create_model(TASK.model, num_classes=TASK.num_classes, input_shape=TASK.input_shape, seed=0)
    assert {name.split(".")[0] for name in module.state_dict()} == {"body", "middle", "head", "private"}
    assert 10_000 <= sum(p.numel() for p in module.parameters()) <= 60_000
    schema_of(module, TASK.spec)
    x = torch.rand(1, *TASK.input_shape)
    turned = torch.cat([x[..., :NUM_BEAMS].roll(4, dims=-1), x[..., NUM_BEAMS:]], dim=-1)
    maps = [module.body(z)[:, :-3].reshape(32, -1) for z in (x, turned)]  # type: ignore[operator]
    torch.testing.assert_close(maps[0].roll(1, dims=1), maps[1])


@pytest.mark.parametrize("shape", [(1, 51), (2, 1, 51), (1, 1, 5)])
def test_a_shape_that_is_no_scan_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="lidar-net got"):
        LidarNet(num_classes=10, input_shape=shape)
