"""Any module becomes a nested model, or is refused with a name and a way out."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from nfl_core.errors import SpecError
from nfl_core.learning import (
    LearningSettings,
    ModelError,
    NestedLearner,
    Samples,
    WrappedModel,
    displacement,
    export_graph,
    label_prior,
    load_state,
    merge,
    micro_update,
    nested,
    plain_loss,
    propose_spec,
    schema_of,
    score,
    shared_only,
    state_of,
    with_group_norm,
)
from nfl_core.learning.profile import profile_model
from nfl_core.levels import Level, NestedSpec, Scope

K, IMAGE, SERIES = 4, (1, 8, 8), (1, 10, 6)
SETTINGS = LearningSettings(learning_rate=0.05, batch_size=8, epochs_per_update=1, refit_steps=3)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 16, batch_first=True)
        self.fc = nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x)[0][:, -1])


class FeaturesAndClassifier(nn.Module):
    """The names that most published networks use; one of them is a method of a nested model."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, K))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8, 1, 1))
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.layer1, self.layer2 = Block(), Block()
        self.fc = nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x) * self.gain)).mean((2, 3)))


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.ReLU(),
        nn.Linear(16, K),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, K))


@dataclass(frozen=True, kw_only=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    options: dict[str, object] = field(default_factory=dict)
    skill: tuple[str, ...] = ()
    concept: tuple[str, ...] = ()

    def plain(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def nested(self, seed: int = 0) -> WrappedModel:
        return nested(self.plain(seed), input_shape=self.shape, **self.options)

    def samples(self, num: int = 40, seed: int = 0) -> Samples:
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(K, (num,), generator=generator)
        return Samples(x=torch.randn(num, *self.shape, generator=generator) + y.reshape(-1, 1, 1, 1) - 1.5, y=y)


CASES = {
    "cnn": Case(make=plain_cnn, skill=("4.*",), concept=("0.*", "1.*", "6.*")),
    "gru": Case(make=Recurrent, shape=SERIES, options={"view": (10, 6)}, concept=("gru.*", "fc.*")),
    "residual": Case(make=Residual, skill=("layer2.*",), concept=("gain", "stem.*", "layer1.*", "fc.*")),
    "vgg": Case(
        make=FeaturesAndClassifier,
        options={"private_depth": 2, "private_hidden": 5},
        skill=("classifier.0.*",),
        concept=("features.*", "classifier.2.*"),
    ),
    "named": Case(
        make=FeaturesAndClassifier,
        options={"head": "classifier"},
        skill=("features.3.*",),
        concept=("features.0.*", "features.1.*", "classifier.*"),
    ),
    "mlp": Case(make=mlp, concept=("1.*", "3.*")),
    "nothing private": Case(
        make=Residual,
        options={"private_depth": 0},
        skill=("layer2.*",),
        concept=("gain", "stem.*", "layer1.*", "fc.*"),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def answer_of(module: nn.Module, case: Case, x: Tensor) -> Tensor:
    view = case.options.get("view", case.shape)
    assert isinstance(view, tuple)
    return module(x.reshape(len(x), *view))


@every_case
def test_a_fresh_nested_model_answers_like_the_module_and_leaves_it_alone(case: Case) -> None:
    module, x = case.plain(), case.samples().x
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    model = nested(module, input_shape=case.shape, **case.options)
    assert torch.equal(answer_of(module, case, x), model(x))
    assert torch.equal(model(x), model.generic(model.features(x)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())
    assert model.num_classes == K


@every_case
def test_names_stay_as_the_engineer_wrote_them(case: Case) -> None:
    module, model = case.plain(), case.nested()
    names = [name for name, _ in model.named_parameters()]
    own = [name for name in names if not name.startswith("private.")]
    assert own == [name for name, _ in module.named_parameters()]
    assert len(names) - len(own) == 2 * int(case.options.get("private_depth", 1))
    assert list(model.state_dict()) == names == list(state_of(model))
    other = case.nested(seed=1)
    other.load_state_dict(model.state_dict())
    assert all(np.array_equal(a, b) for a, b in zip(state_of(other).values(), state_of(model).values(), strict=True))
    other.load_state_dict(case.plain(2).state_dict(), strict=False)
    x = case.samples().x
    assert torch.equal(answer_of(case.plain(2), case, x), other(x))


@every_case
def test_the_proposed_levels_cover_the_model(case: Case) -> None:
    spec = propose_spec(case.nested())
    found = {level.name: (level.params, level.scope) for level in spec.levels}
    expected = {"concept": (case.concept, Scope.GLOBAL)}
    if case.skill:
        expected["skill"] = (case.skill, Scope.REGION)
    if case.options.get("private_depth") != 0:
        expected["reflex"] = (("private.*",), Scope.PRIVATE)
    assert found == expected
    assert list(spec.assign(list(state_of(case.nested())))) == list(state_of(case.nested()))


@every_case
def test_the_whole_loop_runs_on_it(case: Case) -> None:
    """Learn, measure what moved, merge it into another device's model, refit: as with the reference model."""
    data, model = case.samples(), case.nested()
    spec = propose_spec(model)
    schema = schema_of(model, spec)
    learner = NestedLearner(model, spec=spec, settings=SETTINGS, generator=torch.Generator().manual_seed(0))
    prior, before = label_prior(data.y, num_classes=K), state_of(model)
    report = micro_update(learner, data.x, data.y, prior=prior, epochs=4)
    assert report.loss_after < report.loss_before
    moved = displacement(before, state_of(model), schema)
    assert all(np.any(array) for array in moved.values())
    assert not any(name.startswith("private.") for name in moved)
    peer = copy.deepcopy(case.nested())
    incoming = {name: before[name] + array for name, array in moved.items()}
    merged = merge(
        peer,
        incoming=incoming,
        schema=schema,
        holdout=case.samples(seed=5),
        train=data,
        settings=SETTINGS,
        generator=torch.Generator().manual_seed(1),
    )
    assert merged.accepted
    now = state_of(peer)
    assert all(np.array_equal(now[name], incoming[name]) for name in incoming)
    assert score(peer, data.x, data.y).loss < score(case.nested(), data.x, data.y).loss


@pytest.mark.parametrize("name", ["gru", "vgg", "nothing private"])
def test_its_graph_answers_like_it_in_onnx_runtime(name: str) -> None:
    case = CASES[name]
    model, data = case.nested(), case.samples(7)
    spec = propose_spec(model)
    schema = schema_of(model, spec)
    graph = export_graph(model, schema)
    learner = NestedLearner(model, spec=spec, settings=SETTINGS, generator=torch.Generator().manual_seed(0))
    micro_update(learner, data.x, data.y, prior=label_prior(data.y, num_classes=K))
    state = state_of(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(state[tensor.name]) for tensor in schema.shared]
    options.add_external_initializers([tensor.name for tensor in schema.shared], values)
    session = onnxruntime.InferenceSession(graph, options)
    private = {tensor.name: state[tensor.name] for tensor in schema.private}
    logits, features = session.run(None, {"x": data.x.numpy(), **private})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(data.x).numpy(), atol=1e-5)  # other kernels, values below 10
        np.testing.assert_allclose(features, model.features(data.x).numpy(), atol=1e-5)


def test_one_shared_level_is_a_torch_loop_over_the_module_itself() -> None:
    case, data = CASES["residual"], CASES["residual"].samples()
    model, module = case.nested(), case.plain()
    learner = NestedLearner(
        model, spec=shared_only(), settings=SETTINGS, generator=torch.Generator().manual_seed(0), objective=plain_loss
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(3):
        learner.observe(data.x, data.y, prior=torch.zeros(K))
        optimizer.zero_grad()
        cross_entropy(module(data.x), data.y).backward()
        optimizer.step()
    state = state_of(model)
    assert all(np.array_equal(state[name], p.detach().numpy()) for name, p in module.named_parameters())


def test_what_is_frozen_becomes_a_constant_of_the_graph() -> None:
    """A pretrained body: in no state, never sent, still in the graph; a frozen BatchNorm answers as in eval mode."""
    case = Case(
        make=lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, K)
        )
    )
    module, data = case.plain(), case.samples()
    module(case.samples(seed=3).x)  # moves the running statistics
    for parameter in module[:2].parameters():
        parameter.requires_grad_(requires_grad=False)
    model = nested(module, input_shape=IMAGE)
    assert list(state_of(model)) == ["4.weight", "4.bias", "private.weight", "private.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(data.x), module.eval()(data.x), atol=1e-5, rtol=0)  # one rounding of the scale
    spec = propose_spec(model)
    schema = schema_of(model, spec)
    graph = export_graph(model, schema)
    body = model.inner[0].weight.clone()
    assert body.numpy().tobytes() in graph
    assert model.inner[4].weight.detach().numpy().tobytes() not in graph
    learner = NestedLearner(model, spec=spec, settings=SETTINGS, generator=torch.Generator().manual_seed(0))
    micro_update(learner, data.x, data.y, prior=label_prior(data.y, num_classes=K))
    assert torch.equal(body, model.inner[0].weight)


def test_a_wholly_frozen_module_has_a_private_head_that_learns() -> None:
    model, data = nested(frozen(), input_shape=IMAGE), CASES["mlp"].samples()
    spec = propose_spec(model)
    assert [(level.name, level.params) for level in spec.levels] == [("reflex", ("private.*",))]
    learner = NestedLearner(model, spec=spec, settings=SETTINGS, generator=torch.Generator().manual_seed(0))
    before = score(model, data.x, data.y).loss
    micro_update(learner, data.x, data.y, prior=label_prior(data.y, num_classes=K), epochs=3)
    assert score(model, data.x, data.y).loss < before


def test_dropout_is_off_so_that_the_same_samples_give_the_same_bytes() -> None:
    case = Case(make=lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, K)))
    data, states = case.samples(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = case.nested()
        learner = NestedLearner(
            model, spec=propose_spec(model), settings=SETTINGS, generator=torch.Generator().manual_seed(0)
        )
        micro_update(learner, data.x, data.y, prior=label_prior(data.y, num_classes=K))
        states.append(state_of(model)["2.weight"].tobytes())
    assert states[0] == states[1]
    notes = profile_model(case.nested(), propose_spec(case.nested()), settings=SETTINGS, bits=2, max_batch=8).advice
    assert notes == ("layer '1' is a Dropout, and off: a nested module learns in eval mode",)


def test_group_norm_takes_the_place_of_batch_norm_in_a_copy() -> None:
    norm = nn.BatchNorm2d(12)
    module = nn.Sequential(nn.Conv2d(1, 12, 3), norm, nn.ReLU(), norm, nn.Flatten(), nn.Linear(432, K))
    nn.init.uniform_(norm.weight, 1, 2, generator=torch.Generator().manual_seed(0))
    changed = with_group_norm(module)
    assert isinstance(module[1], nn.BatchNorm2d)
    assert isinstance(changed[1], nn.GroupNorm)
    assert changed[1] is changed[3], "a layer that stood in two places still does"
    assert (changed[1].num_groups, changed[1].num_channels) == (3, 12)
    assert torch.equal(changed[1].weight, norm.weight)
    assert changed[1].weight is not norm.weight
    with pytest.raises(ModelError, match="share memory"):
        nested(changed, input_shape=IMAGE)
    changed[3] = nn.Identity()
    assert nested(changed, input_shape=IMAGE)(torch.zeros(2, *IMAGE)).shape == (2, K)
    alone = with_group_norm(nn.BatchNorm1d(5))
    assert isinstance(alone, nn.GroupNorm)
    assert alone.num_groups == 1  # groups of one channel would be all zeros on [B, C]
    assert with_group_norm(nn.BatchNorm2d(6, affine=False)).weight is None


class Returns(nn.Module):
    """A module with one classifier and something behind it."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.flat, self.fc, self.after = nn.Flatten(), nn.Linear(64, K), after

    def forward(self, x: Tensor) -> object:
        return self.after(self.fc(self.flat(x)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x.flatten(1)))


def tied() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, K))
    module[3].weight = module[1].weight
    return module


def overlapping() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, K))
    module[2].weight = nn.Parameter(module[1].weight.detach()[:K])
    return module


def with_buffer() -> nn.Module:
    module = mlp()
    module.register_buffer("table", torch.zeros(3))
    return module


def frozen() -> nn.Module:
    return mlp().requires_grad_(requires_grad=False)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


REFUSED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (lambda: nn.Sequential(nn.BatchNorm2d(1), mlp()), "layer '0' is a BatchNorm2d", "with_group_norm"),
    (lambda: chain(nn.BatchNorm1d(64, track_running_stats=False)), "layer '1' is a BatchNorm1d", "GroupNorm"),
    (with_buffer, "persistent buffer 'table'", "persistent=False"),
    (tied, "'1.weight' and '3.weight' share memory", "untie"),
    (overlapping, "'1.weight' and '2.weight' share memory", "untie"),
    (lambda: chain(nn.LazyLinear(8), nn.Linear(8, K)), "'1.weight' of the module has no shape yet", "run one batch"),
    (lambda: mlp().double(), "parameter '1.weight' is torch.float64", "module.float()"),
    (lambda: mlp().half(), "parameter '1.weight' is torch.float16", "module.float()"),
    (lambda: mlp().to(torch.complex64), "parameter '1.weight' is torch.complex64", "two real ones"),
    (lambda: Returns(lambda y: log_softmax(y, 1)), "answer is not the output of a Linear layer", "no softmax"),
    (Twice, "answer is not the output of a Linear layer that runs once", "head="),
    (lambda: Returns(lambda y: (y, y)), "answers a batch of 2 with tuple", "one tensor"),
    (lambda: Returns(lambda y: y.reshape(2, 2, 2)), "with shape [2, 2, 2], expected logits", "one tensor"),
    (lambda: Returns(lambda y: y[:, 0]), "with shape [2], expected logits", "one tensor"),
    (lambda: Returns(lambda y: y[:1]), "with shape [1, 4], expected logits", "a row a sample"),
    (lambda: chain(nn.Linear(64, 1)), "with shape [2, 1], expected logits", "one tensor"),
    (lambda: nn.Linear(5, K), "cannot take a batch of shape [2, 1, 8, 8]", "view"),
    (lambda: nn.Linear(8, K), "with shape [2, 1, 8, 4], expected logits", "one tensor"),
    (lambda: chain(nn.Embedding(9, 3)), "cannot take a batch", "float32"),
    (lambda: torch.jit.script(mlp()), "RecursiveScriptModule cannot be nested", ""),
]


@pytest.mark.parametrize(("make", "message", "hint"), REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_a_module_that_cannot_be_nested_is_refused_with_a_way_out(
    make: Callable[[], nn.Module], message: str, hint: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        nested(make(), input_shape=IMAGE)
    assert hint in caught.value.hint


def test_arguments_that_do_not_fit_are_refused() -> None:
    class Own(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.private = nn.Linear(64, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.private(x.flatten(1))

    with pytest.raises(ModelError, match="part named 'private'"):
        nested(Own(), input_shape=IMAGE)
    with pytest.raises(ModelError, match="no layer 'clasifier'"):
        nested(FeaturesAndClassifier(), input_shape=IMAGE, head="clasifier")
    with pytest.raises(ModelError, match="not the output of layer 'features'"):
        nested(FeaturesAndClassifier(), input_shape=IMAGE, head="features")
    with pytest.raises(ModelError, match="view"):
        nested(Recurrent(), input_shape=SERIES, view=(10, 7))
    with pytest.raises(ModelError, match="depth -1"):
        nested(mlp(), input_shape=IMAGE, private_depth=-1)
    with pytest.raises(ModelError, match="nothing in the module learns"):
        nested(frozen(), input_shape=IMAGE, private_depth=0)
    with pytest.raises(SpecError, match="in no level"):
        nested(mlp(), input_shape=IMAGE, spec=NestedSpec.of([Level(name="a", params=("1.*",), scope=Scope.GLOBAL)]))


def test_a_deeper_private_head_depends_on_its_generator_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        model = nested(
            CASES["mlp"].plain(), input_shape=IMAGE, private_depth=3, generator=torch.Generator().manual_seed(seed)
        )
        states.append({name: array.tobytes() for name, array in state_of(model).items()})
    assert states[0] == states[1] != states[2]
    assert set(np.frombuffer(states[0]["private.4.weight"], np.float32)) == {0.0}
    before = torch.random.get_rng_state()
    nested(CASES["mlp"].plain(), input_shape=IMAGE)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_copy_of_a_nested_model_is_independent() -> None:
    case = CASES["residual"]
    model = case.nested()
    x, twin = case.samples().x, copy.deepcopy(model)
    answer = model(x)
    load_state(twin, {name: 0 * array for name, array in state_of(twin).items()})
    assert torch.equal(answer, model(x))
    assert torch.equal(twin(x), torch.zeros(len(x), K))
