from __future__ import annotations

import pytest

from nfl_sim.tasks import UnknownTaskError, find_task, task_names


def test_an_unknown_task_is_named_beside_those_there_are() -> None:
    with pytest.raises(UnknownTaskError, match="no task 'cooking', expected one of") as caught:
        find_task("cooking")
    assert all(name in caught.value.message for name in task_names())


@pytest.mark.parametrize("name", task_names())
def test_every_folder_is_a_task_of_its_name(name: str) -> None:
    assert find_task(name).name == name
