"""Read what the root said at enrolment: who the device is, where its leaf is, and its part of fleet.toml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from nfl_core.config import DEFAULT_LEVELS, EdgeSection, LearningSection, ModelSection, PrivacySection
from nfl_core.durable import read_file, write_file
from nfl_core.errors import NotFoundError
from nfl_core.levels import Level, NestedSpec
from nfl_edge.errors import DeviceFolderError
from nfl_edge.folder import DeviceFolder


class FleetSettings(BaseModel):
    """Sections of `fleet.toml` that a device needs; `settings_json` of the enrolment reply."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSection = ModelSection()
    levels: tuple[Level, ...] = DEFAULT_LEVELS
    learning: LearningSection = LearningSection()
    privacy: PrivacySection = PrivacySection()
    edge: EdgeSection = EdgeSection()

    @property
    def spec(self) -> NestedSpec:
        """The levels as a checked spec. Raises SpecError."""
        return NestedSpec.of(self.levels)


class DeviceSettings(BaseModel):
    """Everything that a device knows about itself, apart from its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device_id: str
    fleet: str
    region: str
    leaf_id: str
    leaf_address: str
    settings: FleetSettings = FleetSettings()


def read_settings(folder: DeviceFolder) -> DeviceSettings:
    """Read the settings of an enrolled device. Raises DeviceFolderError."""
    try:
        return DeviceSettings.model_validate_json(read_file(folder.settings))
    except NotFoundError as error:
        raise DeviceFolderError(f"{folder.root} holds no enrolled device: {folder.settings.name} is missing") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DeviceFolderError(f"{folder.settings} is not valid at {place or 'its start'}: {first['msg']}") from error


def write_settings(folder: DeviceFolder, settings: DeviceSettings) -> None:
    """Write the settings durably. Raises DurableError."""
    write_file(folder.settings, settings.model_dump_json(indent=2).encode())
