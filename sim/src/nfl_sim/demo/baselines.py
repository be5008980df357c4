"""The two learners that the nested ones are measured against, on the same data and steps: alone, and sharing all.

Runs as a process of its own beside the fleet and appends one line a round to a file, so that the demo can compare at
the number of micro-updates that the devices really made.

Run as `python -m nfl_sim.demo.baselines --home HOME --rounds N --out FILE`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from nfl_core.config import load_fleet
from nfl_core.learning import (
    Cohort,
    LearningSettings,
    NestedModel,
    Owner,
    Samples,
    create_model,
    local_only,
    plain_loss,
    shared_only,
)
from nfl_edge.sense import Split, read_samples


def _samples(split: Split) -> Samples:
    return Samples(x=torch.from_numpy(split.x_BCHW), y=torch.from_numpy(split.y_B))


def run(home: Path, *, num_rounds: int, out: Path, seed: int) -> None:
    """Run both learners for a number of rounds."""
    torch.set_num_threads(1)
    config = load_fleet(home / "fleet.toml")
    owners = []
    for folder in sorted((home / "devices").iterdir()):
        samples = read_samples(folder / "samples.safetensors")
        owners.append(Owner(region="all", train=_samples(samples.train), test=_samples(samples.test)))

    def make() -> NestedModel:
        return create_model(
            config.model.name, num_classes=config.model.num_classes, input_shape=config.model.input_shape, seed=seed
        )

    settings = LearningSettings.of(config.learning)
    local, shared = (
        Cohort(make, spec=spec, settings=settings, owners=owners, seed=seed, objective=plain_loss)
        for spec in (local_only(), shared_only())
    )
    with out.open("a", encoding="ascii") as file:
        for number in range(1, num_rounds + 1):
            alone, together = local.run_round(), shared.run_round()
            file.write(
                json.dumps(
                    {
                        "round": number,
                        "local": alone.after_local,
                        "shared": together.after_average,
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
    parser.add_argument("--out", type=Path, required=True, help="file of one JSON object a round, appended to")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run(arguments.home, num_rounds=arguments.rounds, out=arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
