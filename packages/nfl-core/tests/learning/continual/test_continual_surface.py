from __future__ import annotations

import nfl_core.learning.continual as continual


def test_the_public_names_are_pinned() -> None:
    assert continual.__all__ == sorted(continual.__all__)
    assert len(continual.__all__) == 33
    assert all(getattr(continual, name).__doc__ for name in continual.__all__)
