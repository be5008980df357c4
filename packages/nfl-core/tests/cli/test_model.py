from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nfl_core.cli import app as cli
from nfl_core.cli.console import set_invocation

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))

def with_batch_norm():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
"""
FLEET = """
[fleet]
name = "home"
[[leaves]]
site = "leaf-1"
region = "north"
[model]
num_classes = 3
input_shape = [1, 8, 8]
[privacy]
bits = 3
batch_max = 8
[[levels]]
name = "own"
params = ["private.*"]
scope = "private"
[[levels]]
name = "fleet"
params = ["1.*", "3.*"]
scope = "global"
period = 4
optimizer = "adam"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "fleet.toml").write_text(FLEET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def nfl(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command in this process, which has loaded torch already."""
    try:
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
    finally:
        set_invocation(None)
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def test_check_shows_levels_and_proposes_some(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nfl("model", "check", "network.py:make", "--input-shape", "1,8,8", capsys=capsys)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:3] == ["Sequential:", "1,142", "parameters,"]
    assert ["concept", "global", "1", "1", "sgd", "0.05", "4", "1,091", "95.5%", "4,364", "955", "0"] in rows
    assert "private: private.weight, private.bias" in out
    assert 'params = ["1.*", "3.*"]' in out
    assert "[[levels]]" in out


def test_check_of_a_fleet_s_levels_as_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nfl("model", "check", "network.py:make", "--spec", "fleet.toml", "-o", "json", capsys=capsys)
    assert (code, err) == (0, "")
    data = json.loads(out)["data"]
    assert data["proposed"] is False
    assert data["model"]["modulus_bits"] == 6
    own, fleet = data["model"]["levels"]
    assert (own["level"]["scope"], own["bytes_up_sealed"]) == ("private", 0)
    assert fleet["bytes_up_sealed"] == -(-1091 * 6 // 8)
    assert fleet["memory_bytes"] == 4 * (3 * 1091 + 4)
    assert data["model"]["step_ms"] > 0
    assert any("usual for adam" in note for note in data["model"]["advice"])
    code, out, _ = nfl(
        "model", "check", "network.py:make", "--spec", "fleet.toml", "--bits", "2", "--batch", "32", "-o", "json",
        capsys=capsys,
    )  # fmt: skip
    assert json.loads(out)["data"]["model"]["modulus_bits"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("network.py:with_batch_norm", "--input-shape", "1,8,8"), 3, "error[model.unfit]: layer '1' is a BatchNorm1d"),
        (("network.py:make", "--input-shape", "1,9,9"), 3, "error[model.unfit]: the module cannot take a batch"),
        (("network.py:make", "--input-shape", "1;8"), 3, "error[config.invalid]: shape is '1;8'"),
        (("small-cnn", "--spec", "fleet.toml"), 3, "error[spec.invalid]: parameter 'body.0.weight' is in no level"),
        (("nothing",), 3, "error[config.invalid]: model 'nothing' is not installed"),
        (("small-cnn", "--bits", "99"), 7, "error[delta.invalid]: quantisation has 99 bits"),
    ],
)
def test_check_names_what_does_not_fit(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, error: str
) -> None:
    got, out, err = nfl("model", "check", *arguments, capsys=capsys)
    assert (got, out) == (code, "")
    what, why, do = err.splitlines()
    assert what.startswith(error)
    assert why.startswith("why: ")
    assert do.startswith("try: ")


def test_check_without_torch_says_what_to_install(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == "nfl_core.learning" or name.startswith("nfl_core.learning.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = nfl("model", "check", "small-cnn", capsys=capsys)
    assert code == 1
    assert "error[model.no-torch]" in err
    assert 'pip install "nfl-core[torch]"' in err
