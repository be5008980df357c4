"""Run one campaign: `nox -s campaign -- NAME [COUNT]`. A campaign ends with one JSON line and fails on a violation."""

import runpy
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CAMPAIGNS = {
    "kill": REPO / "sim/src/nfl_sim/campaigns/kill.py",
    "power-cut": REPO / "packages/nfl-ota/tests/campaigns/power_cut.py",
}


def main(arguments: list[str]) -> None:
    """Run the file behind the name as a script; it takes the count as its argument."""
    if not arguments or arguments[0] not in CAMPAIGNS:
        raise SystemExit(f"usage: nox -s campaign -- NAME [COUNT]\ncampaigns: {', '.join(CAMPAIGNS)}")
    file = CAMPAIGNS[arguments[0]]
    sys.argv = [str(file), *arguments[1:]]
    sys.path.insert(0, str(file.parent))
    runpy.run_path(str(file), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
