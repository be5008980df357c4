from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nfl_core.errors import ExitCode, IdentityError
from nfl_secure.errors import ExpiredTokenError, UsedTokenError
from nfl_secure.identity import TokenStore

from .fleet import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> TokenStore:
    return TokenStore(tmp_path / "tokens", clock=clock)


def test_a_token_is_redeemed_once(store: TokenStore) -> None:
    token = store.mint("robot-1", "leaf-1")
    assert store.redeem(token, "robot-1").leaf == "leaf-1"
    with pytest.raises(UsedTokenError) as caught:
        store.redeem(token, "robot-1")
    assert (caught.value.code, caught.value.exit_code) == ("identity.token-used", ExitCode.VERIFICATION)


def test_token_replay_after_a_restart_is_refused(store: TokenStore, tmp_path: Path, clock: Clock) -> None:
    token = store.mint("robot-1", "leaf-1")
    store.redeem(token, "robot-1")
    with pytest.raises(UsedTokenError):
        TokenStore(tmp_path / "tokens", clock=clock).redeem(token, "robot-1")


def test_a_token_minted_by_another_process_is_seen(store: TokenStore, tmp_path: Path, clock: Clock) -> None:
    token = TokenStore(tmp_path / "tokens", clock=clock).mint("robot-1", "leaf-1")
    assert store.redeem(token, "robot-1").device_id == "robot-1"


def test_a_late_token_is_refused(store: TokenStore, clock: Clock) -> None:
    token = store.mint("robot-1", "leaf-1", lifetime_s=600)
    clock.advance(seconds=600)
    with pytest.raises(ExpiredTokenError) as caught:
        store.redeem(token, "robot-1")
    assert caught.value.code == "identity.token-expired"


def test_a_stolen_token_does_not_enrol_another_device_and_stays_good(store: TokenStore) -> None:
    token = store.mint("robot-1", "leaf-1")
    with pytest.raises(IdentityError, match="not for device"):
        store.redeem(token, "robot-2")
    store.redeem(token, "robot-1")


def test_guessed_tokens_are_refused(store: TokenStore) -> None:
    token = store.mint("robot-1", "leaf-1")
    for guess in ("", "A" * 43, token[:-1], token.swapcase(), token + "A", "../" + token, "\0"):
        with pytest.raises(IdentityError, match="unknown"):
            store.redeem(guess, "robot-1")


def test_the_store_does_not_hold_the_token(store: TokenStore, tmp_path: Path) -> None:
    token = store.mint("robot-1", "leaf-1")
    files = [path for path in (tmp_path / "tokens").iterdir() if path.is_file()]
    assert files
    assert all(token.encode() not in path.read_bytes() and token not in path.name for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_two_threads_with_one_token_only_one_wins(store: TokenStore) -> None:
    token = store.mint("robot-1", "leaf-1")
    gate, outcomes = threading.Barrier(8), []

    def redeem() -> None:
        gate.wait()
        try:
            store.redeem(token, "robot-1")
            outcomes.append("won")
        except UsedTokenError:
            outcomes.append("used")

    threads = [threading.Thread(target=redeem) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["used"] * 7 + ["won"]


@pytest.mark.parametrize(
    ("device", "leaf", "lifetime_s"), [("Robot", "leaf-1", 1), ("robot", "..", 1), ("robot", "leaf", 0)]
)
def test_a_token_for_nonsense_is_not_minted(store: TokenStore, device: str, leaf: str, lifetime_s: float) -> None:
    with pytest.raises(IdentityError):
        store.mint(device, leaf, lifetime_s=lifetime_s)
