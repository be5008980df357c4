"""What `DurableUpdater` takes from python-tuf's inside. A python-tuf that changes it must be looked at."""

from __future__ import annotations

import errno
import inspect

import pytest
from tuf.api import exceptions
from tuf.ngclient import Updater
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

from nfl_core.errors import DurableError, NflError, StorageFullError
from nfl_ota import MetadataError
from nfl_ota.tuf_adapter import our_errors


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_load_root", ["self"]),
        ("_persist_metadata", ["self", "rolename", "data"]),
        ("_persist_root", ["self", "version", "data"]),
        ("_persist_file", ["self", "filename", "data"]),
        ("_update_root_symlink", ["self"]),
        ("_load_local_metadata", ["self", "rolename"]),
    ],
)
def test_the_private_methods_of_the_updater_are_as_they_were(name, parameters):
    assert list(inspect.signature(getattr(Updater, name)).parameters) == parameters


def test_everything_the_updater_keeps_goes_through_persist_file():
    """Else something trusted would be written without sync."""
    source = inspect.getsource(Updater)
    assert source.count('"wb"') == 1  # download_target, whose result is read back and verified
    assert source.count("os.replace") == 1
    assert source.count("NamedTemporaryFile") == 1


def test_expiry_is_judged_by_the_reference_time():
    source = inspect.getsource(TrustedMetadataSet)
    assert source.count("is_expired(self.reference_time)") == source.count("is_expired(") == 4


@pytest.mark.parametrize(
    "kind", [*exceptions.RepositoryError.__subclasses__(), exceptions.RepositoryError, exceptions.DownloadError]
)
def test_every_error_of_python_tuf_becomes_ours(kind):
    with pytest.raises(NflError), our_errors():
        raise kind("what")


def test_errors_of_the_disk_become_ours():
    with pytest.raises(StorageFullError), our_errors():
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(DurableError), our_errors():
        raise PermissionError(errno.EACCES, "denied")
    with pytest.raises(MetadataError), our_errors():
        raise exceptions.RepositoryError("odd")
