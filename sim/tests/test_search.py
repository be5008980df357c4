"""The search for what must never leave: it sees every planted leak, and nothing where there is nothing."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfl_sim.demo import search
from nfl_sim.demo.search import NUMBERS, PIXEL_NUMBERS, PIXELS, Patterns, count_planted, telling_row

GENERATOR = np.random.default_rng(7)
PRIVATE = (0.05 * GENERATOR.standard_normal(650)).astype(np.float32)
ROWS = GENERATOR.integers(0, 256, (500, 28)).astype(np.uint8)
NOISE = GENERATOR.bytes(2_000_000)  # like masked values


@pytest.fixture(scope="module")
def patterns() -> Patterns:
    return Patterns.of(private=[PRIVATE], pixels=[ROWS])


def planted(leak: bytes, *, at: int) -> list[bytes]:
    return [NOISE[:1000], NOISE[1000 : 1000 + at] + leak + NOISE[1000 + at : 50_000]]


def test_nothing_is_found_in_random_bytes(patterns: Patterns) -> None:
    assert patterns.count_in([NOISE]) == 0


@pytest.mark.parametrize("form", NUMBERS, ids=lambda form: form.name)
@pytest.mark.parametrize("at", [0, 1, 2, 3, 7, 48_999])
def test_every_number_form_is_seen_at_any_offset(patterns: Patterns, form: search.Form, at: int) -> None:
    leak = form.leak(PRIVATE[100 : 100 + form.per_window])
    assert len(leak) == 8
    assert patterns.count_in(planted(leak, at=at)) >= 1


@pytest.mark.parametrize("form", [PIXELS, *PIXEL_NUMBERS], ids=lambda form: form.name)
@pytest.mark.parametrize("at", [0, 5, 30_001])
def test_every_pixel_form_of_a_row_is_seen(patterns: Patterns, form: search.Form, at: int) -> None:
    assert patterns.count_in(planted(form.leak(ROWS[3].astype(np.float32)), at=at)) >= 1


@pytest.mark.parametrize("text", ["{}", "x={} y", '{{"w": {}}}'])
def test_a_value_in_a_text_is_seen(patterns: Patterns, text: str) -> None:
    value = next(float(value) for value in PRIVATE if len(str(value).partition(".")[2]) >= 9)
    assert patterns.count_in([text.format(value).encode().ljust(64)]) >= 1


def test_a_private_value_as_python_writes_a_float32_is_seen(patterns: Patterns) -> None:
    value = next(value for value in PRIVATE if len(str(value).partition(".")[2]) >= 9)
    assert patterns.count_in([f"loss was {value}".encode()]) >= 1


def test_a_leak_across_the_parts_of_a_stream_is_seen_in_the_body(patterns: Patterns) -> None:
    leak = NUMBERS[0].leak(PRIVATE[:2])
    body = NOISE[:996] + leak + NOISE[:996]
    parts = [body[:1000], body[1000:]]
    assert patterns.count_in(parts) == 0
    assert patterns.count_in([*parts, body]) >= 1


def test_a_leak_at_the_border_of_a_search_step_is_seen(patterns: Patterns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_STEP_BYTES", 1000)
    leak = NUMBERS[0].leak(PRIVATE[:2])
    for at in range(990, 1010):
        assert patterns.count_in([NOISE[:at] + leak + NOISE[at:3000]]) == 1


def test_zeros_flat_background_and_digests_are_no_leaks() -> None:
    empty = Patterns.of(private=[np.zeros(650, np.float32)], pixels=[np.zeros((9, 28), np.uint8)])
    assert (len(empty.windows), empty.num_values, empty.num_rows) == (0, 0, 0)
    assert empty.count_in([bytes(1000)]) == 0
    digits = Patterns.of(private=[np.array([0.12412594, 0.98765432], np.float32)], pixels=[])
    assert digits.count_in([b"sha256 0012412594aabb98765432"]) == 0


def test_initial_zeros_do_not_hide_learned_values() -> None:
    values = np.concatenate([np.zeros(10, np.float32), PRIVATE[:10]])
    patterns = Patterns.of(private=[values], pixels=[])
    assert patterns.num_values == 10
    assert patterns.count_in([b"...." + values.astype("<f4").tobytes()]) >= 9


def test_the_control_finds_all_that_it_plants() -> None:
    assert count_planted(NOISE[:30_000], private=PRIVATE[:16], row=telling_row(ROWS)) == (12, 12)


def test_the_control_fails_when_the_search_is_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "NUMBERS", search.NUMBERS[:3])
    sound = search.Patterns.of
    monkeypatch.setattr(search.Patterns, "of", lambda *, private, pixels: sound(private=[], pixels=pixels))
    found, planted_leaks = count_planted(NOISE[:30_000], private=PRIVATE[:16], row=telling_row(ROWS))
    assert found < planted_leaks


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32).filter(lambda x: abs(x) > 1e-3), min_size=4, max_size=40), st.integers(0, 99)
)
def test_two_neighbours_are_always_found(values: list[float], at: int) -> None:
    array = np.array(values, np.float32)
    patterns = Patterns.of(private=[array], pixels=[])
    telling = [pair for pair in itertools.pairwise(values) if len(set(struct.pack("<2f", *pair))) >= 4]
    for pair in telling[:3]:
        assert patterns.count_in([NOISE[:at] + struct.pack("<2f", *pair) + NOISE[:50]]) >= 1
