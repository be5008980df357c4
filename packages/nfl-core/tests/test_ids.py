from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core import ids
from nfl_core.errors import IdentityError

NAME_PARSERS = [ids.parse_fleet_name, ids.parse_device_id, ids.parse_leaf_id, ids.parse_region_id, ids.parse_site_id]


@pytest.mark.parametrize("parse", NAME_PARSERS)
@given(text=st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z"))
def test_names_are_kept(parse: Callable[[str], str], text: str) -> None:
    assert parse(text) == text


@pytest.mark.parametrize("parse", NAME_PARSERS)
@pytest.mark.parametrize("text", ["", "-a", "A", "a/b", "../a", "a.b", "a b", "a\n", "a" * 64, "\u00e4", "a\0"])
def test_other_names_are_refused(parse: Callable[[str], str], text: str) -> None:
    with pytest.raises(IdentityError, match="expected 1 to 63"):
        parse(text)


@pytest.mark.parametrize(
    ("parse", "length"), [(ids.parse_digest, 64), (ids.parse_contribution_id, 32), (ids.parse_batch_id, 32)]
)
def test_hex_of_the_right_length_is_kept_and_other_text_refused(parse: Callable[[str], str], length: int) -> None:
    assert parse("0a" * (length // 2)) == "0a" * (length // 2)
    for wrong in (
        "0A" * (length // 2),
        "0a" * (length // 2) + "\n",
        "0a" * (length // 2 - 1),
        "0g" * (length // 2),
        "",
    ):
        with pytest.raises(IdentityError, match=f"expected {length} lower-case hex"):
            parse(wrong)


@pytest.mark.parametrize("parse", [ids.parse_version_id, ids.parse_policy_id])
def test_numbers_fit_the_wire(parse: Callable[[int], int]) -> None:
    assert [parse(0), parse(2**63 - 1)] == [0, 2**63 - 1]
    for wrong in (-1, 2**63):
        with pytest.raises(IdentityError, match="expected 0 to"):
            parse(wrong)


def test_new_ids_are_valid_and_differ() -> None:
    made = {ids.parse_contribution_id(ids.new_contribution_id()) for _ in range(100)}
    made |= {ids.parse_batch_id(ids.new_batch_id()) for _ in range(100)}
    assert len(made) == 200


def test_canonical_json_has_one_form() -> None:
    assert ids.canonical_json({"b": [1, 0.5], "a": "\u00e4"}) == b'{"a":"\\u00e4","b":[1,0.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        ids.canonical_json(float("nan"))


def test_digest_is_sha256() -> None:
    assert ids.digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
