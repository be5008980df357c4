from __future__ import annotations

import json
from pathlib import Path

import pytest

from nfl_core.config import (
    DEFAULT_LEVELS,
    FleetConfig,
    FleetSection,
    LeafSection,
    json_schema,
    load_fleet,
    load_fleet_with_origins,
    write_fleet,
)
from nfl_core.errors import ConfigError

SMALLEST = """
[fleet]
name = "home"

[[leaves]]
site = "leaf-1"
region = "north"

[[leaves]]
site = "leaf-2"
region = "south"
"""


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "my fleet.toml"
    path.write_text(SMALLEST)
    return path


def refused(path: Path, **arguments: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_fleet(path, **({"env": {}} | arguments))
    assert caught.value.exit_code == 3
    return caught.value


def test_smallest_file_takes_the_defaults(fleet_file: Path) -> None:
    config = load_fleet(fleet_file, env={})
    assert (config.privacy.bits, config.privacy.mode, config.root.host) == (2, "sealed", "127.0.0.1")
    assert config.levels == DEFAULT_LEVELS
    assert [level.scope.value for level in config.spec.levels] == ["private", "region", "global"]
    assert config.leaf("leaf-2").region == "south"
    with pytest.raises(ConfigError, match="leaf-1, leaf-2"):
        config.leaf("leaf-3")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = FleetConfig(
        fleet=FleetSection(name="home"), leaves=(LeafSection(site="leaf-1", region="north", port=4000),)
    )
    write_fleet(tmp_path / "fleet.toml", config)
    assert load_fleet(tmp_path / "fleet.toml", env={}) == config


def test_flag_beats_environment_beats_file_beats_default(fleet_file: Path) -> None:
    fleet_file.write_text(SMALLEST + "[root]\nhost = '10.0.0.1'\nenrol_port = 1001\nflare_port = 1002\n")
    env = {"NFL_ROOT__ENROL_PORT": "2001", "NFL_ROOT__FLARE_PORT": "2002", "NFL_HOME": "/elsewhere", "PATH": "/bin"}
    loaded = load_fleet_with_origins(fleet_file, env=env, overrides={"root.flare_port": "3002"})
    root = loaded.config.root
    assert (root.admin_port, root.host, root.enrol_port, root.flare_port) == (18442, "10.0.0.1", 2001, 3002)
    assert {key: origin for key, origin in loaded.origins.items() if key.startswith("root.")} == {
        "root.host": str(fleet_file),
        "root.enrol_port": "env NFL_ROOT__ENROL_PORT",
        "root.flare_port": "flag root.flare_port",
    }


def test_environment_reaches_lists(fleet_file: Path) -> None:
    env = {"NFL_LEAVES__1__PORT": "4711", "NFL_ROLLOUT__WAVES": "[0.5, 1.0]", "NFL_MODEL__INPUT_SHAPE": "[3, 32, 32]"}
    config = load_fleet(fleet_file, env=env)
    assert (config.leaves[1].port, config.leaves[0].port) == (4711, 0)
    assert config.rollout.waves == (0.5, 1.0)
    assert config.model.input_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("[privcy]\nbits = 2", "privcy", "privacy"),
        ("[privacy]\nbitz = 2", "privacy.bitz", "privacy.bits"),
        ("[root]\nbatch_per_version = 2", "root.batch_per_version", "root.batches_per_version"),
        ("[[leaves]]\nsite = 'leaf-3'\nregoin = 'x'\nregion = 'y'", "leaves.2.regoin", "leaves.2.region"),
        (
            "[[levels]]\nname = 'all'\nparams = ['*']\nscope = 'global'\nperiode = 2",
            "levels.0.periode",
            "levels.0.period",
        ),
        ("[edge]\nbatches_per_version = 2", "edge.batches_per_version", "root.batches_per_version"),
    ],
)
def test_misspelt_key_is_refused_with_the_right_one(fleet_file: Path, text: str, wrong: str, right: str) -> None:
    fleet_file.write_text(SMALLEST + text)
    error = refused(fleet_file)
    assert f"{fleet_file}: unknown key {wrong}, did you mean {right}?" in error.message
    assert error.hint == f"write {right} instead of {wrong}"


def test_misspelt_key_of_the_environment_is_refused_with_the_right_one(fleet_file: Path) -> None:
    error = refused(fleet_file, env={"NFL_ROOT__HOTS": "10.0.0.1"})
    assert error.message == "env NFL_ROOT__HOTS: unknown key root.hots, did you mean root.host?"


def test_key_like_no_other_is_refused_without_a_guess(fleet_file: Path) -> None:
    error = refused(fleet_file, overrides={"root.zzzzzz": "1"})
    assert error.message == "flag root.zzzzzz: unknown key root.zzzzzz"
    assert "nfl config schema" in error.hint


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"privacy.bits": "many"}, "flag privacy.bits: privacy.bits is 'many', expected: a valid integer"),
        ({"privacy.bits": "17"}, "privacy.bits is '17', expected: less than or equal to 16"),
        ({"privacy.mode": "pairwise"}, "privacy.mode is 'pairwise', expected: 'sealed'"),
        ({"privacy.n_min": "6"}, "n_min 6, batch_size 5, batch_max 8; expected rising order"),
        ({"privacy.bits": "16", "privacy.max_weight": "100000"}, "more than 32 bits"),
        ({"keeper.n_min": "5"}, "keeper.n_min 5 is above privacy.n_min 4"),
        ({"rollout.waves": "[0.5, 0.2, 1.0]"}, "waves are [0.5, 0.2, 1.0]; expected rising fractions"),
        ({"rollout.waves": "[0.5]"}, "expected rising fractions that end at 1.0"),
        ({"rollout.waves": "[0.5"}, "'[0.5' is not a TOML value"),
        ({"leaves.0.site": "leaf-2"}, "sites are root, keeper, leaf-2, leaf-2; expected unique names"),
        ({"leaves.0.site": "Leaf 1"}, "leaves.0.site is 'Leaf 1', expected: string should match pattern"),
        ({"leaves.0.port": "18441"}, "127.0.0.1:18441 is given to two services"),
        ({"leaves.7.port": "1"}, "there is no leaves.7.port"),
        ({"fleet.name.first": "x"}, "there is no fleet.name.first"),
        ({"learning.learning_rate": "nan"}, "learning.learning_rate is 'nan'"),
        ({"levels": '[{name = "a", params = ["*"], scope = "private", sync_every = 2}]'}, "private level 'a'"),
        ({"levels": "[]"}, "levels is [], expected"),
        ({"model.input_shape": "[1, 28]"}, "model.input_shape.2 is missing"),
        ({"root.robust_over": "device"}, "root.robust_over is 'device' in privacy.mode 'sealed', where nobody sees"),
        ({"root.robust": "krum"}, "root.robust is 'krum', expected: 'norm-bound'"),
        ({"root.max_attacker_fraction": "0.5"}, "root.max_attacker_fraction is '0.5', expected: less than 0.5"),
    ],
)
def test_bad_value_is_named_with_what_was_expected(fleet_file: Path, overrides: dict[str, str], message: str) -> None:
    assert message in refused(fleet_file, overrides=overrides).message


def test_missing_section_is_named(fleet_file: Path) -> None:
    fleet_file.write_text("[fleet]\nname = 'home'\n")
    assert refused(fleet_file).message == f"{fleet_file}: leaves is missing, expected a value"


def test_all_mistakes_are_named_at_once(fleet_file: Path) -> None:
    message = refused(fleet_file, overrides={"privacy.bitz": "1", "root.host": "two words"}).message
    assert "privacy.bitz" in message
    assert "root.host" in message


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    assert "nfl cluster init" in refused(tmp_path / "fleet.toml").hint


@pytest.mark.parametrize("content", [b"fleet = [", b"\xff\xfe", b"[fleet]\nname = 'a'\nname = 'b'\n"])
def test_file_that_is_not_toml_is_named(fleet_file: Path, content: bytes) -> None:
    fleet_file.write_bytes(content)
    assert f"{fleet_file} is not TOML" in refused(fleet_file).message


def test_folder_instead_of_a_file_is_named(tmp_path: Path) -> None:
    assert "cannot read" in refused(tmp_path).message


def test_json_schema_knows_every_section_and_refuses_other_keys() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(FleetConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["fleet", "leaves"]
