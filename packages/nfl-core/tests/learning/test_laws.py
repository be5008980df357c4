"""The laws of nested learning: known methods are special cases of it, and a slow level is what the paper says.

Every reference is a loop over torch's own optimizer that shares no code with learner, cohort and strategies. Results
agree bit for bit, except where the reference writes a proximal term as a loss or a mixture as a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nfl_core.learning import (
    Cohort,
    Ditto,
    FedAla,
    FedAvg,
    FedBabu,
    FedPer,
    FedProx,
    FedRep,
    FedRod,
    LearningSettings,
    LocalOnly,
    NestedLearner,
    NestedModel,
    Owner,
    Samples,
    Strategy,
    joint_loss,
    label_prior,
    micro_update,
    plain_loss,
    score,
    state_of,
)
from nfl_core.levels import Level, NestedSpec, Scope

MakeModel = Callable[..., NestedModel]
MakeSamples = Callable[..., Samples]
Loss = Callable[[NestedModel, Tensor, Tensor], Tensor]
RATE, SIZE, EPOCHS, ROUNDS, SEED = 0.05, 16, 2, 2, 3
SETTINGS = LearningSettings(learning_rate=RATE, batch_size=SIZE, epochs_per_update=EPOCHS)
PRIOR = torch.full((3,), 1 / 3).log()
ATOL = 2e-6  # a few float32 roundings of weights below 2, over two rounds of about six steps


@dataclass(slots=True, kw_only=True)
class Client:
    """One owner of a reference: its samples, its model and its chance."""

    owner: Owner
    model: NestedModel
    generator: torch.Generator

    def descend(
        self,
        *,
        epochs: int = EPOCHS,
        rooms: Sequence[str] = ("body", "middle", "head"),
        loss: Loss | None = None,
        model: NestedModel | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take SGD steps on some rooms of the model."""
        model = model or self.model
        optimizer = torch.optim.SGD([p for room in rooms for p in getattr(model, room).parameters()], lr=RATE)
        for _ in range(epochs):
            order = torch.randperm(len(self.owner.train.y), generator=generator or self.generator)
            for start in range(0, len(order), SIZE):
                pick = order[start : start + SIZE]
                optimizer.zero_grad()
                (loss or plain)(model, self.owner.train.x[pick], self.owner.train.y[pick]).backward()
                optimizer.step()


def plain(model: NestedModel, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model.head(model.middle(model.body(x))), y)


def pulled_to(anchors: Iterable[Tensor], strength: float) -> Loss:
    held = [anchor.detach().clone() for anchor in anchors]

    def loss(model: NestedModel, x: Tensor, y: Tensor) -> Tensor:
        away = sum(((p - a) ** 2).sum() for p, a in zip(model.parameters(), held, strict=True))
        return plain(model, x, y) + 0.5 * strength * away

    return loss


class World:
    """Clients, and a server that averages the named rooms, evenly or by number of samples."""

    def __init__(self, make: MakeModel, owners: Sequence[Owner], *, shared: Sequence[str], by_samples: bool) -> None:
        self.clients = [
            Client(owner=o, model=make(), generator=torch.Generator().manual_seed(SEED * len(owners) + i))
            for i, o in enumerate(owners)
        ]
        self.server = {
            name: p.detach().clone() for name, p in make().named_parameters() if name.split(".")[0] in shared
        }
        sizes = [len(owner.train.y) if by_samples else 1 for owner in owners]
        self.shares = [np.float32(size / sum(sizes)) for size in sizes]

    def average(self) -> None:
        """Add the mean displacement to what the server holds, and hand it out."""
        moved = [
            {name: share * (client.model.get_parameter(name).detach() - held) for name, held in self.server.items()}
            for share, client in zip(self.shares, self.clients, strict=True)
        ]
        self.server = {name: held + sum(part[name] for part in moved) for name, held in self.server.items()}
        for client in self.clients:
            client.model.load_state_dict(self.server, strict=False)


def owners_of(make_samples: MakeSamples) -> list[Owner]:
    return [
        Owner(region="one", train=make_samples(40 + 8 * i, seed=i), test=make_samples(30, seed=100 + i))
        for i in range(3)
    ]


def cohort_of(make: MakeModel, owners: Sequence[Owner], strategy: Strategy, *, by_samples: bool = False) -> Cohort:
    cohort = Cohort(make, strategy=strategy, settings=SETTINGS, owners=owners, seed=SEED, weigh_by_samples=by_samples)
    for _ in range(ROUNDS):
        cohort.run_round(scored=False)
    return cohort


def assert_same(ours: Iterable[NestedModel], theirs: Iterable[NestedModel], *, atol: float = 0.0) -> None:
    for one, two in zip(ours, theirs, strict=True):
        for name, p in two.named_parameters():
            torch.testing.assert_close(one.get_parameter(name), p, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


ALL = ("body", "middle", "head")


@pytest.mark.parametrize("by_samples", [True, False])
def test_one_shared_level_of_period_one_is_federated_averaging(
    make_model: MakeModel, make_samples: MakeSamples, by_samples: bool
) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=ALL, by_samples=by_samples)
    for _ in range(ROUNDS):
        for client in world.clients:
            client.descend()
        world.average()
    cohort = cohort_of(make_model, owners, FedAvg(), by_samples=by_samples)
    assert_same(cohort.models, [client.model for client in world.clients])
    answers = zip(cohort.models, owners, strict=True)
    assert cohort.run_round().after_merge == tuple(score(m, o.test.x, o.test.y).accuracy for m, o in answers)


def test_everything_private_is_everybody_alone(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=(), by_samples=False)
    for _ in range(ROUNDS):
        for client in world.clients:
            client.descend()
    assert_same(cohort_of(make_model, owners, LocalOnly()).models, [client.model for client in world.clients])


def test_a_private_head_that_learns_at_once_is_fedper(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=("body", "middle"), by_samples=False)
    for _ in range(ROUNDS):
        for client in world.clients:
            client.descend()
        world.average()
    assert_same(cohort_of(make_model, owners, FedPer()).models, [client.model for client in world.clients])


def test_a_private_head_that_learns_first_is_fedrep(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=("body", "middle"), by_samples=False)
    for _ in range(ROUNDS):
        for client in world.clients:
            client.descend(epochs=1, rooms=["head"])
            client.descend(epochs=1, rooms=["body", "middle"])
        world.average()
    assert_same(cohort_of(make_model, owners, FedRep()).models, [client.model for client in world.clients])


def test_a_pull_to_the_last_version_is_fedprox(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=ALL, by_samples=False)
    for _ in range(ROUNDS):
        for client in world.clients:
            client.descend(loss=pulled_to(client.model.parameters(), 0.5))
        world.average()
    models = cohort_of(make_model, owners, FedProx(prox=0.5)).models
    assert_same(models, [client.model for client in world.clients], atol=ATOL)
    free = cohort_of(make_model, owners, FedAvg()).models[0].get_parameter("head.weight")
    assert float((free - models[0].get_parameter("head.weight")).detach().abs().max()) > 100 * ATOL


def test_a_held_head_is_fedbabu(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=("body", "middle"), by_samples=False)
    for _ in range(ROUNDS):
        for client in world.clients:
            client.descend(rooms=["body", "middle"])
        world.average()
    strategy = FedBabu(tune_epochs=1)
    cohort = cohort_of(make_model, owners, strategy)
    assert_same(cohort.models, [client.model for client in world.clients])
    for place, client in enumerate(world.clients):
        client.descend(epochs=1, generator=torch.Generator().manual_seed(place))
    assert_same([strategy.answer(m) for m in cohort.members], [client.model for client in world.clients])


def test_a_second_model_that_is_pulled_to_the_shared_one_is_ditto(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=ALL, by_samples=False)
    personal = [make_model() for _ in owners]
    for _ in range(ROUNDS):
        for client, own in zip(world.clients, personal, strict=True):
            pull = pulled_to(client.model.parameters(), 0.5)
            client.descend(epochs=1)
            client.descend(epochs=1, model=own, loss=pull)
        world.average()
    strategy = Ditto(prox=0.5)
    cohort = cohort_of(make_model, owners, strategy)
    assert_same(cohort.models, [client.model for client in world.clients])
    assert_same([strategy.current(m) for m in cohort.members], personal, atol=ATOL)


def test_a_learned_mixture_of_old_and_new_head_is_fedala(make_model: MakeModel, make_samples: MakeSamples) -> None:
    """The mixing weights are leaves of a graph here; the strategy multiplies by the way from old to new itself."""
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=ALL, by_samples=False)
    weights = [[torch.ones_like(p, requires_grad=True) for p in c.model.head.parameters()] for c in world.clients]
    for number in range(ROUNDS):
        for client in world.clients:
            client.descend()
        old = [[p.detach().clone() for p in client.model.head.parameters()] for client in world.clients]
        world.average()
        for client, local, mixing in zip(world.clients, old, weights, strict=True):
            x, y = client.owner.train.x, client.owner.train.y
            pick = torch.randperm(len(y), generator=client.generator)[: int(0.8 * len(y))]
            new = [p.detach().clone() for p in client.model.head.parameters()]
            with torch.no_grad():
                z = client.model.middle(client.model.body(x[pick]))
            for _ in range(4 if number == 0 else 1):
                for start in range(0, len(pick), SIZE):
                    w, b = (o + (n - o) * m for o, n, m in zip(local, new, mixing, strict=True))
                    here = slice(start, start + SIZE)
                    loss = cross_entropy(nn.functional.linear(z[here], w, b), y[pick][here])
                    for m, gradient in zip(mixing, torch.autograd.grad(loss, mixing), strict=True):
                        m.data = (m.data - 20.0 * gradient).clamp(0, 1)
            with torch.no_grad():
                for p, o, n, m in zip(client.model.head.parameters(), local, new, mixing, strict=True):
                    p.copy_(o + (n - o) * m)
    cohort = cohort_of(make_model, owners, FedAla(rate=20.0, first_passes=4))
    assert_same(cohort.models, [client.model for client in world.clients], atol=10 * ATOL)
    assert any(float(m.detach().min()) < 0.9 for mixing in weights for m in mixing), "some weights have moved"


def test_two_heads_blind_to_each_other_are_fedrod(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners = owners_of(make_samples)
    world = World(make_model, owners, shared=ALL, by_samples=False)
    for _ in range(ROUNDS):
        for client in world.clients:
            prior = label_prior(client.owner.train.y, num_classes=3)

            def loss(model: NestedModel, x: Tensor, y: Tensor, prior: Tensor = prior) -> Tensor:
                z = model.middle(model.body(x))
                generic = model.head(z)
                personal = cross_entropy(generic.detach() + model.private(z.detach()), y)
                return cross_entropy(generic + prior, y) + personal

            client.descend(rooms=[*ALL, "private"], loss=loss)
        world.average()
    assert_same(cohort_of(make_model, owners, FedRod()).models, [client.model for client in world.clients])


def head_and_rest(**rest: object) -> NestedSpec:
    head = Level(name="head", params=("head.*", "private.*"), scope=Scope.PRIVATE)
    return NestedSpec.of(
        [head, Level.model_validate({"name": "rest", "params": ["body.*", "middle.*"], "scope": "global"} | rest)]
    )


@pytest.mark.parametrize("how", ["rate 0", "held"])
def test_slow_levels_that_stand_still_are_head_only_fine_tuning(
    make_model: MakeModel, make_samples: MakeSamples, how: str
) -> None:
    owner = owners_of(make_samples)[0]
    client = Client(owner=owner, model=make_model(), generator=torch.Generator().manual_seed(0))
    client.descend(rooms=["head"])
    model = make_model()
    spec = head_and_rest(learning_rate=0.0) if how == "rate 0" else head_and_rest()
    learner = NestedLearner(
        model, spec=spec, settings=SETTINGS, generator=torch.Generator().manual_seed(0), objective=plain_loss
    )
    if how == "held":
        learner.hold("rest")
    micro_update(learner, owner.train.x, owner.train.y, prior=PRIOR, refit_steps=0)
    assert_same([model], [client.model])
    fresh = state_of(make_model())
    assert all(np.array_equal(fresh[n], a) for n, a in state_of(model).items() if not n.startswith("head."))


PEERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=RATE),
    "momentum": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=RATE, fused=True),
}


@pytest.mark.parametrize("optimizer", list(PEERS))
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("num_batches", [8, 7, 1])
def test_a_slow_step_is_one_step_on_the_sum_of_its_gradients(
    make_model: MakeModel, make_samples: MakeSamples, num_batches: int, reduce: str, optimizer: str
) -> None:
    """Eq. 71 of arXiv:2512.24695. Eight batches fill two chunks of four; seven and one end in a chunk cut short."""
    batches = [make_samples(8, seed) for seed in range(num_batches)]
    model = make_model()
    learner = NestedLearner(
        model,
        spec=head_and_rest(period=4, optimizer=optimizer, reduce=reduce),
        settings=SETTINGS,
        generator=torch.Generator(),
    )
    for batch in batches:
        learner.observe(batch.x, batch.y, prior=PRIOR)
    learner.flush()

    peer = make_model()
    fast = [p for name, p in peer.named_parameters() if name.startswith(("head.", "private."))]
    slow = [p for name, p in peer.named_parameters() if name.startswith(("body.", "middle."))]
    fast_steps, slow_steps = torch.optim.SGD(fast, lr=RATE), PEERS[optimizer](slow)
    for start in range(0, num_batches, 4):
        chunk = batches[start : start + 4]
        slow_steps.zero_grad()  # torch sums what backward adds until the next zero_grad
        for batch in chunk:
            fast_steps.zero_grad()
            joint_loss(peer, batch.x, batch.y, PRIOR).backward()
            fast_steps.step()
        for p in slow if reduce == "mean" else ():
            assert p.grad is not None
            p.grad /= len(chunk)
        slow_steps.step()
    assert_same([model], [peer])
