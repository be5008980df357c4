"""The two learners that the nested ones are measured against, on the same data and steps: alone, and sharing all.

Runs as a process of its own beside the fleet, at most one round ahead of it, and writes one line a round to a file: so
the demo compares at the number of micro-updates that the devices really made, and no round is run that nobody needs.

Run as `python -m nfl_sim.demo.baselines --home HOME --rounds N --out FILE`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfl_core.learning import NestedModel, Samples
    from nfl_edge.sense import Split

LOOK_S = 0.5
_UPDATE = b'"event": "micro-update"'


def updates_of(devices: Path) -> float:
    """Return how many micro-updates the mean device has made, by the devices' own journals."""
    journals = [folder / "journal/events.jsonl" for folder in devices.iterdir()]
    counts = [journal.read_bytes().count(_UPDATE) if journal.exists() else 0 for journal in journals]
    return sum(counts) / max(1, len(counts))


def _wait_for(devices: Path, *, updates: float) -> None:
    while updates_of(devices) < updates:
        time.sleep(LOOK_S)


def _samples(split: Split) -> Samples:
    import torch

    from nfl_core.learning import Samples

    return Samples(x=torch.from_numpy(split.x_BCHW), y=torch.from_numpy(split.y_B))


def run(home: Path, *, num_rounds: int, out: Path, seed: int) -> None:
    """Run both learners for a number of rounds, none before the fleet is about to reach it."""
    devices = home / "devices"
    # Nothing heavy before the fleet learns: until then every processor is busy with its start.
    _wait_for(devices, updates=1 / 20)
    import torch

    from nfl_core.config import load_fleet
    from nfl_core.learning import (
        Cohort,
        FedAvg,
        LearningSettings,
        LocalOnly,
        Owner,
        create_model,
    )
    from nfl_edge.sense import read_samples

    torch.set_num_threads(1)
    config = load_fleet(home / "fleet.toml")
    owners = []
    for folder in sorted(devices.iterdir()):
        samples = read_samples(folder / "samples.safetensors")
        owners.append(Owner(region="all", train=_samples(samples.train), test=_samples(samples.test)))

    def make() -> NestedModel:
        return create_model(
            config.model.name, num_classes=config.model.num_classes, input_shape=config.model.input_shape, seed=seed
        )

    settings = LearningSettings.of(config.learning)
    local, shared = (
        Cohort(
            make,
            strategy=strategy,
            settings=settings,
            owners=owners,
            seed=seed,
            server_learning_rate=config.root.server_learning_rate,
            server_momentum=config.root.server_momentum,
        )
        for strategy in (LocalOnly(), FedAvg())
    )
    # Anew, not appended to: after a restart all rounds are run again.
    with out.open("w", encoding="ascii") as file:
        for number in range(1, num_rounds + 1):
            _wait_for(devices, updates=number - 1)
            alone, together = local.run_round(), shared.run_round()
            file.write(
                json.dumps(
                    {
                        "round": number,
                        "local": alone.after_local,
                        "shared": together.after_merge,
                        "steps": alone.num_steps,
                    }
                )
                + "\n"
            )
            file.flush()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Learn alone, and share everything, on the demo's data.")
    parser.add_argument("--home", type=Path, required=True, help="folder of the demo's fleet")
    parser.add_argument("--rounds", type=int, required=True, help="rounds of one micro-update an owner")
    parser.add_argument("--out", type=Path, required=True, help="file of one JSON object a round")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run(arguments.home, num_rounds=arguments.rounds, out=arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
