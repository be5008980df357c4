"""Write constraints.txt: the exact versions that this environment holds, torch first, ours left out."""

import importlib.metadata
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "constraints.txt"
HEADER = "# The versions that were tested together. Written by `nox -s lock`; torch stands first.\n"


def main() -> None:
    """Keep what constraints.txt pins for the other tools' environments, renew what is installed here."""
    pins: dict[str, str] = {}
    if TARGET.exists():
        pins.update(line.split("==") for line in TARGET.read_text().splitlines() if "==" in line)
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if not name.startswith("nfl-") and name not in {"pip", "setuptools", "wheel"}:
            pins[name] = distribution.version.split("+")[0]
    torch = pins.pop("torch", "2.13.0")
    TARGET.write_text(HEADER + f"torch=={torch}\n" + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins)))


if __name__ == "__main__":
    main()
