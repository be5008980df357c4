"""Tasks on real data with natural owners. Each is a folder here that exports `TASK`; finding one imports no other.

task = find_task("audio")
data = task.load(Path("cache"), np.random.default_rng(0))
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from nfl_core.errors import NotFoundError

if TYPE_CHECKING:
    from nfl_sim.tasks.task import Task

__all__ = ["UnknownTaskError", "find_task", "task_names"]


class UnknownTaskError(NotFoundError):
    """No task has that name."""

    code = "task.unknown"
    hint = "see them with `nfl task list`"


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, sorted, without importing one (a task needs torch)."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if module.ispkg))


def find_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        UnknownTaskError: There is none.
    """
    if name not in task_names():
        raise UnknownTaskError(f"no task {name!r}, expected one of {', '.join(task_names())}")
    task: Task = import_module(f"{__name__}.{name}").TASK
    return task
