"""Enrol a device: keys are made in its folder, certificates and settings come from the root."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from nfl_core.durable import write_file
from nfl_core.errors import ConfigError
from nfl_edge.folder import DeviceFolder
from nfl_edge.settings import DeviceSettings, FleetSettings, write_settings
from nfl_secure.identity.enrolment import enrol_device


def enrol(path: Path, *, token: str, root: str, ca_pem: bytes, device_id: str | None = None) -> dict[str, object]:
    """Enrol the device whose folder is `path`.

    Args:
        path: Folder of the device; made when it is missing.
        token: One-time token.
        root: `host:port` of the enrolment port.
        ca_pem: The fleet's CA, pinned.
        device_id: Id of the device; None: name of the folder.

    Returns:
        What there is to show.

    Raises:
        IdentityError: The token is not for this device, used or unknown, or the id is not a valid one.
        ExpiredError: The token is too late.
        UnreachableError: The root does not answer.
        ConfigError: The root's settings are not understood by this version.
    """
    folder = DeviceFolder(path)
    folder.make()
    enrolled = enrol_device(
        root, ca_pem=ca_pem, token=token, device_id=device_id or path.resolve().name, folder=folder.keys
    )
    try:
        settings = FleetSettings.model_validate_json(enrolled.placement.settings_json)
    except ValidationError as error:
        raise ConfigError(
            f"the root's settings are not understood: {error.errors()[0]['msg']}", hint="upgrade nfl-edge"
        ) from error
    write_file(folder.trusted_root, enrolled.placement.trusted_root)
    spiffe = enrolled.principal.spiffe
    known = DeviceSettings(
        device_id=spiffe.name,
        fleet=spiffe.fleet,
        region=enrolled.placement.region,
        leaf_id=enrolled.leaf,
        leaf_address=enrolled.placement.leaf_address,
        settings=settings,
    )
    write_settings(folder, known)
    return {
        "device": known.device_id,
        "fleet": known.fleet,
        "region": known.region,
        "leaf": known.leaf_id,
        "folder": str(path),
    }
