from __future__ import annotations

import pytest

from nfl_core.errors import ContentError, IdentityError, NotFoundError, StorageFullError
from nfl_core.ids import digest_of
from nfl_ota import ChunkStore


@pytest.fixture
def store(tmp_path):
    return ChunkStore(tmp_path / "chunks with a space")


def test_a_chunk_comes_back(store):
    digest = store.put(b"weights")
    assert digest == digest_of(b"weights")
    assert store.get(digest) == b"weights"
    assert list(store) == [digest]
    assert store.put(b"weights") == digest


def test_an_unknown_chunk_is_not_found(store):
    assert not store.has(digest_of(b"?"))
    with pytest.raises(NotFoundError):
        store.get(digest_of(b"?"))


def test_a_damaged_chunk_is_refused_and_can_be_put_again(store, tmp_path):
    digest = store.put(b"weights")
    (tmp_path / "chunks with a space" / digest).write_bytes(b"weightz")
    assert not store.has(digest)
    with pytest.raises(ContentError):
        store.get(digest)
    store.put(b"weights")
    assert store.get(digest) == b"weights"


@pytest.mark.parametrize("name", ["../state", "", "a" * 63, "/etc/passwd", "A" * 64])
def test_names_that_are_no_digest_are_refused(store, name):
    with pytest.raises(IdentityError):
        store.get(name)


def test_gc_keeps_what_is_named(store):
    keep, drop = store.put(b"keep"), store.put(b"dropped")
    assert store.gc({keep}) == len(b"dropped")
    assert list(store) == [keep]
    assert not store.has(drop)


def test_a_full_disk_adds_nothing(store, monkeypatch):
    import errno

    from nfl_core import durable

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.LOCAL_DISK, "_write", full)
        with pytest.raises(StorageFullError):
            store.put(b"weights")
    assert list(store) == []
