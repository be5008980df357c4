"""`fleet.toml`: one file that says what a fleet is, and the one way to read it.

Precedence, strongest first: command-line flag (`overrides`), environment (`NFL_ROOT__HOST=...`, two underscores between
section and key), file, default. A key that does not exist is an error that names the nearest key that does; every error
names the place it came from, the key, what was found and what was expected.

    >>> config = load_fleet(Path("fleet.toml"), env={"NFL_ROOT__HOST": "10.0.0.1"}, overrides={"privacy.bits": "4"})
    >>> config.root.host, config.privacy.bits
    ('10.0.0.1', 4)
"""

from nfl_core.config.file import LoadedFleet, json_schema, load_fleet, load_fleet_with_origins, write_fleet
from nfl_core.config.sections import (
    DEFAULT_LEVELS,
    EdgeSection,
    FleetConfig,
    FleetSection,
    GatesSection,
    KeeperSection,
    LeafSection,
    LearningSection,
    ModelSection,
    PrivacySection,
    RolloutSection,
    RootSection,
)

__all__ = [
    "DEFAULT_LEVELS",
    "EdgeSection",
    "FleetConfig",
    "FleetSection",
    "GatesSection",
    "KeeperSection",
    "LeafSection",
    "LearningSection",
    "LoadedFleet",
    "ModelSection",
    "PrivacySection",
    "RolloutSection",
    "RootSection",
    "json_schema",
    "load_fleet",
    "load_fleet_with_origins",
    "write_fleet",
]
