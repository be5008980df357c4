from __future__ import annotations

import pytest

from nfl_core.errors import ContentError, NotFoundError
from nfl_core.ids import digest_of
from nfl_ota import Mirror, max_bytes_of

BAD = [
    "",
    "/etc/passwd",
    "../keys/root-1.pem",
    "metadata/../../keys/targets.pem",
    "metadata/timestamp.json/..",
    "metadata/0.root.json",
    "chunks/" + "a" * 63,
    "chunks/" + "A" * 64,
    "chunks/" + "a" * 64 + "\n",
    "targets/bundles/north/1.json",
    "keys/targets.pem",
    "metadata\\timestamp.json",
    "metadata/timestamp.json\0",
    "targets/bundles/../" + "a" * 64 + ".1.json",
]


@pytest.fixture
def mirror(tmp_path):
    return Mirror(tmp_path / "cache with a space")


@pytest.mark.parametrize("path", BAD)
def test_paths_outside_a_repository_are_refused(mirror, tmp_path, path):
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: mirror.write(path, b"x"), lambda: mirror.fetch(path, max_bytes=9), lambda: mirror.has(path)):
        with pytest.raises(NotFoundError):
            call()
    assert sorted(tmp_path.rglob("*")) == before


def test_every_file_of_a_repository_fits(world, mirror):
    world.publish(1)
    for path, data in world.repository.files_since(0):
        mirror.write(path, data)
        assert mirror.fetch(path, max_bytes=len(data)) == data
        assert len(data) <= max_bytes_of(path)


def test_a_damaged_chunk_is_not_kept(mirror):
    path = f"chunks/{digest_of(b'weights')}"
    with pytest.raises(ContentError):
        mirror.write(path, b"weightz")
    assert not mirror.has(path)
    mirror.write(path, b"weights")
    assert mirror.has(path)


def test_a_file_that_is_too_long_is_not_kept(mirror):
    with pytest.raises(ContentError, match="at most"):
        mirror.write("metadata/timestamp.json", bytes(2 * 2**20 + 1))
    assert not mirror.has("metadata/timestamp.json")


def test_no_more_than_asked_for_is_read(mirror):
    mirror.write("metadata/timestamp.json", b"0123456789")
    with pytest.raises(ContentError):
        mirror.fetch("metadata/timestamp.json", max_bytes=9)


def test_a_file_that_is_not_there_is_not_found(mirror):
    with pytest.raises(NotFoundError):
        mirror.fetch("metadata/timestamp.json", max_bytes=9)
