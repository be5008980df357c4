"""The learning benchmark: partitions, resuming, tables. What methods are worth is not a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nfl_core.errors import ConfigError, ContentError, NotFoundError
from nfl_core.learning import Cohort, LearningSettings, Owner, create_model, default_spec, schema_of
from nfl_core.levels import Scope
from nfl_sim.data.fashion import DataSet
from nfl_sim.learning import run, scenes
from nfl_sim.learning.long import mirrored, shifted, vary
from nfl_sim.learning.merges import measure_merges
from nfl_sim.learning.methods import METHODS, blocks, levels, method_of
from nfl_sim.learning.page import render
from nfl_sim.learning.partition import dirichlet, halves, pathological
from nfl_sim.learning.plan import PLANS, Section, plan_of
from nfl_sim.learning.run import RESULTS, Row, measure, read_rows, run_all
from nfl_sim.learning.scenes import SCENES, Scene
from nfl_sim.learning.table import bytes_to_reach, savings, section_table, spread

Y = np.random.default_rng(0).integers(0, 10, 4000)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A scene that runs in a second, on images of noise around one pattern a class."""
    generator = np.random.default_rng(1)
    patterns = generator.integers(0, 200, (10, 1, 28, 28))
    y_N = np.arange(1200) % 10
    x_NCHW = np.clip(patterns[y_N] + generator.integers(0, 50, (1200, 1, 28, 28)), 0, 255).astype(np.uint8)
    data = DataSet(name="made", source="here", x_NCHW=x_NCHW, y_N=y_N.astype(np.int64))
    monkeypatch.setattr(scenes, "load_images", lambda cache: data)
    monkeypatch.setattr(run, "load_images", lambda cache, say: data)
    scene = Scene(
        title="tiny",
        concentration=5.0,
        num_images=1200,
        rounds=2,
        settings=LearningSettings(learning_rate=0.05, batch_size=32, epochs_per_update=2, refit_steps=2),
    )
    monkeypatch.setattr(scenes, "SCENES", {"tiny": scene, "tiny-rotated": replace(scene, shift="rotated")})
    return "tiny"


@pytest.mark.parametrize("concentration", [0.1, 5.0, float("inf")])
def test_partitions_give_every_sample_to_one_owner(concentration: float) -> None:
    generator = np.random.default_rng(0)
    parts = dirichlet(Y, num_owners=20, concentration=concentration, least=20, generator=generator)
    assert sorted(np.concatenate(parts)) == list(range(len(Y)))
    assert min(map(len, parts)) >= 20
    train, test = halves(parts[0], generator=generator)
    assert sorted([*train, *test]) == sorted(parts[0])
    assert len(train) == int(0.75 * len(parts[0]))


def test_the_pathological_partition_gives_two_classes_an_owner() -> None:
    parts = pathological(Y, num_owners=20, classes_per_owner=2, least=20, generator=np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(len(Y)))
    assert {len(np.unique(Y[part])) for part in parts} == {2}


def test_a_small_concentration_makes_owners_unlike() -> None:
    def entropy(concentration: float) -> float:
        parts = dirichlet(Y, num_owners=20, concentration=concentration, least=20, generator=np.random.default_rng(0))
        shares = np.array([np.bincount(Y[part], minlength=10) / len(part) for part in parts])
        return float(-(shares * np.log(shares + 1e-9)).sum(1).mean())

    assert entropy(0.1) < entropy(0.5) < entropy(5.0) < entropy(float("inf"))


def test_an_impossible_partition_is_named() -> None:
    with pytest.raises(ConfigError, match="none of 5000 draws"):
        dirichlet(Y[:100], num_owners=20, concentration=0.1, least=40, generator=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="has 1 samples for 4 owners"):
        pathological(np.arange(10), num_owners=20, classes_per_owner=2, least=20, generator=np.random.default_rng(0))


def test_the_published_network_has_its_published_size_and_a_private_head_beside() -> None:
    model = create_model("published-cnn", num_classes=10, input_shape=(1, 28, 28), seed=0)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(size for name, size in sizes.items() if not name.startswith("private")) == 582_026
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), model.generic(model.features(x)))
    with pytest.raises(ConfigError, match="images >= 16"):
        create_model("published-cnn", num_classes=10, input_shape=(1, 8, 8), seed=0)


def test_shifts_differ_by_region_and_keep_what_they_should() -> None:
    x, y = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 5, 9])
    for name, shift in scenes.SHIFTS.items():
        first, second = shift(x, y, 0), shift(x, y, 1)
        torch.testing.assert_close(first.x, x)
        assert torch.equal(first.y, y)
        assert torch.equal(second.x, x) == (name in {"none", "renamed"})
        assert torch.equal(second.y, y) == (name != "renamed")


def test_views_of_an_image_are_mirrored_and_shifted_and_nothing_else() -> None:
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 10:12, 5:9] = torch.arange(1.0, 9.0).reshape(2, 4)
    x = image.repeat(600, 1, 1, 1)
    same = torch.Generator().manual_seed(3)
    views = shifted(mirrored(x, same), same)
    again = torch.Generator().manual_seed(3)
    assert torch.equal(views, shifted(mirrored(x, again), again))
    patches = set()
    for view in views[:, 0]:
        rows, columns = (torch.nonzero(view.sum(side))[:, 0] for side in (1, 0))
        patch = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        whole = image[0, 0, 10:12, 5:9]
        flipped = torch.equal(patch, whole.flip(1))
        assert flipped or torch.equal(patch, whole)
        left = 28 - 9 if flipped else 5
        assert abs(int(rows[0]) - 10) <= 2
        assert abs(int(columns[0]) - left) <= 2
        patches.add((flipped, int(rows[0]), int(columns[0]) - left))
    assert len(patches) == 2 * 5 * 5


def test_a_long_scene_varies_images_and_rate_for_every_method_alike(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[float, float]]] = {}

    def watched(cohort: Cohort, owners: Sequence[Owner], *, progress: float, seed: int) -> None:
        vary(cohort, owners, progress=progress, seed=seed)
        assert not torch.equal(cohort.members[0].train.x, owners[0].train.x)
        mine = seen.setdefault(type(cohort.strategy).__name__, [])
        mine.append((progress, float(cohort.members[0].train.x.double().square().sum())))

    monkeypatch.setattr(run, "vary", watched)
    monkeypatch.setattr(scenes, "SCENES", {tiny: replace(scenes.SCENES[tiny], long=True)})
    for method in ("nested", "fedrep", "local"):
        measure(tiny, method, seed=0, cache=tmp_path)
    assert seen["Nested"] == seen["FedRep"] == seen["LocalOnly"]
    assert [progress for progress, _ in seen["Nested"]] == [0.0, 0.5]


def test_variants_change_what_they_say() -> None:
    assert [level.period for level in levels(periods=(1, 2, 4)).levels] == [1, 2, 4]
    assert [level.scope for level in levels(middle=Scope.GLOBAL).levels[1:]] == [Scope.GLOBAL, Scope.GLOBAL]
    names = ["head.weight", "body.x", "middle.x", "private.x"]
    assert levels(head=Scope.REGION).assign(names)["head.weight"] == "concept-region"
    assert levels().levels == default_spec().levels
    model = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=0)
    assert {tensor.scope for tensor in schema_of(model, blocks()).shared} == {Scope.REGION}
    assert [level.sync_every for level in levels(sync_every=4).shared] == [4, 4]


def test_a_run_is_resumed_and_not_repeated(tiny: str, tmp_path: Path) -> None:
    wanted = [(tiny, "nested", 0), (tiny, "fedavg-ft", 0), (tiny, "bits-2-sync-2", 0)]
    said: list[str] = []
    first = run_all(wanted[:1], out=tmp_path, cache=tmp_path, say=said.append)
    rows = run_all(wanted, out=tmp_path, cache=tmp_path, say=said.append)
    assert [line.split()[1:3] for line in said] == [[tiny, "nested"], [tiny, "fedavg-ft"], [tiny, "bits-2-sync-2"]]
    assert rows[wanted[0]] == first[wanted[0]] == read_rows(tmp_path)[wanted[0]]
    assert len({row.steps for row in rows.values()}) == 1
    nested, _, sparse = (rows[key] for key in wanted)
    assert [point[0] for point in nested.curve] == [1, 2]
    model = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=0)
    num_shared = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("private"))
    assert nested.bytes_up == 2 * 20 * 4 * num_shared
    assert 0 < sparse.bytes_up < nested.bytes_up / 2 / 15
    assert sparse.curve[0][1] == 0  # nothing is sent in the first round


def test_the_same_seed_measures_the_same(tiny: str, tmp_path: Path) -> None:
    one, two, other = (measure(tiny, "local", seed=seed, cache=tmp_path) for seed in (0, 0, 1))
    assert one.curve == two.curve != other.curve


def test_merges_are_counted_and_none_that_was_accepted_cost_two_points(tiny: str, tmp_path: Path) -> None:
    figures = measure_merges(tiny, seed=0, cache=tmp_path)
    assert figures.num == 2 * 20
    assert 0 <= figures.num_refused < figures.num
    assert figures.num_over_2 == 0
    assert figures.price[2] <= 2
    assert 0 < figures.mean_alpha <= 1
    assert figures.shock[0] <= figures.shock[1]


def test_results_that_cannot_be_read_or_meant_something_else_are_refused(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    for text in ("{", '[{"scene": 1}]', "[1]"):
        path.write_text(text)
        with pytest.raises(ContentError, match="cannot be read"):
            read_rows(tmp_path)
    row = Row(
        scene=tiny, method="local", seed=0, weighted=1, mean=1, worst=1, best=1, before_merge=1, bytes_up=0, steps=0,
        cpu_s=0, wall_s=0, curve=(), meaning="another",
    )  # fmt: skip
    path.write_text(json.dumps([asdict(row)]))
    with pytest.raises(ContentError, match="meant something else: tiny"):
        read_rows(tmp_path)


def test_names_that_are_not_there_are_named() -> None:
    with pytest.raises(NotFoundError, match="no scene"):
        scenes.scene_of("moon")
    with pytest.raises(NotFoundError, match="no method"):
        method_of("magic")
    with pytest.raises(NotFoundError, match="no plan"):
        plan_of("endless")
    with pytest.raises(NotFoundError, match="no scene"):
        plan_of("quick", only_scenes=("moon",))


def test_plans_name_what_exists_and_never_hide_the_simple_baselines() -> None:
    for plan in PLANS.values():
        for section in plan:
            assert set(section.scenes) <= set(SCENES)
            assert set(section.methods) <= set(METHODS)
    assert {"nested", "local", "fedavg-ft"} <= set(PLANS["quick"][0].methods) & set(PLANS["full"][0].methods)
    (section,) = plan_of("quick", only_scenes=("dir-5",), only_methods=("local",))
    assert section.runs(range(2)) == [("dir-5", "local", 0), ("dir-5", "local", 1)]


def test_tables_show_mean_and_deviation_and_what_bytes_buy() -> None:
    def row(method: str, seed: int, curve: tuple[tuple[int, int, float], ...]) -> Row:
        last = curve[-1]
        return Row(
            scene="dir-5", method=method, seed=seed, weighted=last[2], mean=last[2] - 1, worst=50.0, best=last[2],
            before_merge=0.0, bytes_up=last[1], steps=1, cpu_s=1.0, wall_s=1.0, curve=curve, meaning="",
        )  # fmt: skip

    made = [
        row("fedavg", 0, ((1, 1000, 60.0), (2, 2000, 80.0))),
        row("fedavg", 1, ((1, 1000, 60.0), (2, 2000, 82.0))),
        row("bits-2", 0, ((1, 50, 79.0), (2, 100, 84.0))),
        row("bits-2", 1, ((1, 50, 83.0), (2, 100, 84.0))),
        row("nested", 0, ((1, 1000, 70.0),)),
    ]
    rows = {item.key: item for item in made}
    section = Section(title="T", scenes=("dir-5",), methods=("fedavg", "bits-2", "local"))
    text = section_table(section, rows)
    assert "| FedAvg | 81.0 +- 1.4 | 81.0 |" in text
    assert "| local only | - | - |" in text
    saved = savings(rows, "dir-5", ("bits-2", "nested", "local"))
    assert "| 2 bits | 0.0 +- 0.0 | 30.0 +- 14.1 |" in saved
    assert "| nested (default) | never reached | - |" in saved
    assert "| local only | - | - |" in saved
    assert bytes_to_reach(((1, 0, 90.0), (2, 7, 90.0)), 80.0) == 7
    assert spread([]) == "-"
    page = render([section], rows)
    assert "Accuracy against bytes up" in page
    assert page.count("<svg") == 2
