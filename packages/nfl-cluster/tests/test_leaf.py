"""A leaf before its root is heard of."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfl_ota import Mirror, Repository

from .world import LEAVES, ROOT, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "home")


def _seed_cache(world: World) -> None:
    folder = world.folders[ROOT]
    repository = Repository.open(folder.repository, folder.tuf_keys, world.clock)
    mirror = Mirror(world.folders[LEAVES[0]].cache)
    for path, data in repository.files_since(0):
        mirror.write(path, data)


def test_a_new_leaf_offers_the_first_version_before_any_mail_arrives(world: World) -> None:
    _seed_cache(world)
    world.restart(LEAVES[0])
    reply = world.hello("d0", LEAVES[0])
    assert (reply.newest_version, bool(reply.bundle_target), reply.policy) == (1, True, b"")
    first = (reply.bundle_target, reply.newest_digest)
    world.settle()  # now the root's own word arrives, and says the same
    reply = world.hello("d0", LEAVES[0])
    assert (reply.newest_version, reply.bundle_target, reply.newest_digest) == (1, *first)
    assert reply.policy
    world.restart(LEAVES[0])
    assert world.hello("d0", LEAVES[0]).newest_version == 1


def test_a_leaf_with_an_empty_cache_offers_nothing(world: World) -> None:
    world.restart(LEAVES[0])
    assert world.hello("d0", LEAVES[0]).newest_version == 0
