"""What a task is worth to its owners: nested learning against learning alone and against sharing everything.

    figures = measure(task, data, rounds=task.rounds, seed=1)

The same owners, samples, passes and gradient steps for each method; nothing is masked or quantised here, so a table of
several seeds takes minutes. What the real agents make of the same task says `nfl task run`.

A newcomer is an owner whom the fleet has never heard: the others learn without it, then it takes their shared levels
and learns from a few of its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from nfl_core.config import RootSection
from nfl_core.learning import (
    Cohort,
    FedAvg,
    LocalOnly,
    Nested,
    NestedLearner,
    NestedModel,
    Owner,
    Samples,
    Strategy,
    create_model,
    label_prior,
    load_state,
    micro_update,
    score,
)
from nfl_core.levels import NestedSpec, Scope
from nfl_sim.tasks.task import Task, TaskData

TUNE_EPOCHS = 2
NEWCOMER_UPDATES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Test accuracies of one method, one an owner, 0 to 1, after its last merge.

    Attributes:
        method: For tables.
        accuracies: In the order of the owners.
        bytes_up: An owner, over all rounds, as float32; a real fleet sends a few bits a value.
        update_cpu_s: CPU seconds of one owner's round, training and merge.
    """

    method: str
    accuracies: tuple[float, ...]
    bytes_up: int
    update_cpu_s: float

    @property
    def mean(self) -> float:
        """Of the owners, every owner the same."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def worst(self) -> float:
        """The owner who is served worst."""
        return min(self.accuracies)


def maker(task: Task, *, seed: int) -> Callable[[], NestedModel]:
    """Return what makes the task's model, the same weights each time."""
    return lambda: create_model(task.model, num_classes=task.num_classes, input_shape=task.input_shape, seed=seed)


def in_one_scope(spec: NestedSpec, scope: Scope) -> NestedSpec:
    """Return the spec with all shared levels in one scope: what is left of three levels when only two may be."""
    return NestedSpec.of(
        level.model_copy(update={"scope": scope}) if level.scope.is_shared else level for level in spec.levels
    )


def measure(
    task: Task, data: TaskData, *, rounds: int, seed: int, say: Callable[[str], None] = lambda _: None
) -> tuple[Figures, ...]:
    """Measure all methods.

    Args:
        task: The task.
        data: Its owners.
        rounds: Micro-updates an owner, >= 1.
        seed: Decides the initial weights and the order of samples.
        say: Takes a line when a method is done.
    """
    figures = []
    for name, strategy in methods(task, data).items():
        figures.append(run_method(task, data, name=name, strategy=strategy, rounds=rounds, seed=seed))
        say(f"{name}: mean {100 * figures[-1].mean:.1f}, worst {100 * figures[-1].worst:.1f}")
    return tuple(figures)


def cohort_of(task: Task, strategy: Strategy, owners: Sequence[Owner], *, seed: int) -> Cohort:
    """Return a fleet; ours has the product's server, the others plain averaging, as they were published."""
    return Cohort(
        maker(task, seed=seed),
        strategy=strategy,
        settings=task.settings,
        owners=owners,
        seed=seed,
        server_momentum=RootSection().server_momentum if isinstance(strategy, Nested) else 0.0,
    )


def run_method(task: Task, data: TaskData, *, name: str, strategy: Strategy, rounds: int, seed: int) -> Figures:
    """Measure one method, scored after its last round; arguments as in `measure`."""
    owners = [Owner(region=owner.region, train=owner.train, test=owner.test) for owner in data.owners]
    cohort = cohort_of(task, strategy, owners, seed=seed)
    bytes_up, cpu_s = 0, 0.0
    for number in range(1, rounds + 1):
        report = cohort.run_round(scored=number == rounds)
        bytes_up += report.bytes_up
        cpu_s += report.cpu_s
    return Figures(
        method=name,
        accuracies=report.after_merge,
        bytes_up=bytes_up // len(owners),
        update_cpu_s=cpu_s / rounds / len(owners),
    )


def methods(task: Task, data: TaskData) -> dict[str, Strategy]:
    """Return what is compared; three levels against both ways to have two only where there are regions."""
    compared: dict[str, Strategy] = {"nested": Nested(spec=task.spec), "local only": LocalOnly()}
    if len({owner.region for owner in data.owners}) > 1:
        compared["nested, all shared globally"] = Nested(spec=in_one_scope(task.spec, Scope.GLOBAL))
        compared["nested, all shared in regions"] = Nested(spec=in_one_scope(task.spec, Scope.REGION))
    return {**compared, "FedAvg, fine-tuned": FedAvg(tune_epochs=TUNE_EPOCHS)}


def newcomers(
    task: Task, data: TaskData, *, shots: int, rounds: int, seed: int, say: Callable[[str], None] = lambda _: None
) -> tuple[Figures, ...]:
    """Let each owner in turn be a newcomer with `shots` training samples of each class.

    Returns:
        The newcomers' accuracies at once, after `NEWCOMER_UPDATES` micro-updates, and of the same without a fleet.
    """
    scores: dict[str, list[float]] = {"newcomer, at once": [], "newcomer, taught": [], "newcomer, alone": []}
    for place, new in enumerate(data.owners):
        others = [Owner(region=o.region, train=o.train, test=o.test) for o in data.owners if o is not new]
        make = maker(task, seed=seed)
        cohort = cohort_of(task, Nested(spec=task.spec), others, seed=seed)
        for _ in range(rounds):
            cohort.run_round(scored=False)
        module, alone = make(), make()
        load_state(module, cohort.published.get(new.region) or next(iter(cohort.published.values())), partial=True)
        few = few_of(new.train, shots=shots)
        found = {"newcomer, at once": score(module, new.test.x, new.test.y).accuracy}
        for name, one in (("newcomer, taught", module), ("newcomer, alone", alone)):
            learner = NestedLearner(
                one, spec=task.spec, settings=task.settings, generator=torch.Generator().manual_seed(seed + place)
            )
            for _ in range(NEWCOMER_UPDATES if one is module else rounds):
                micro_update(learner, few.x, few.y, prior=label_prior(few.y, num_classes=task.num_classes))
            found[name] = score(one, new.test.x, new.test.y).accuracy
        for name, accuracy in found.items():
            scores[name].append(accuracy)
        say(f"{new.name}: " + ", ".join(f"{name} {100 * accuracy:.1f}" for name, accuracy in found.items()))
    return tuple(
        Figures(method=name, accuracies=tuple(values), bytes_up=0, update_cpu_s=0.0) for name, values in scores.items()
    )


def few_of(samples: Samples, *, shots: int) -> Samples:
    """Return the first `shots` samples of each class, all where there are fewer."""
    pick = torch.cat([(samples.y == label).nonzero()[:shots, 0] for label in sorted(set(samples.y.tolist()))])
    return replace(samples, x=samples.x[pick], y=samples.y[pick])
