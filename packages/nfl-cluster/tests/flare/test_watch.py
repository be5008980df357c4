from __future__ import annotations

from dataclasses import replace

import pytest

from nfl_cluster.flare.watch import MAX_PAUSE_S, PATIENCE_S, START_S, SUBMIT, WAIT, Seen, decide

SITES = frozenset({"keeper", "leaf-1", "leaf-2"})
RUNNING = Seen(
    connected=SITES,
    answering=SITES,
    carrying=SITES,
    root_carries=True,
    has_job=True,
    complete=True,
    carried=SITES,
    age_s=100,
)


def action(seen: Seen) -> str:
    return decide(seen, sites=SITES)[0]


def test_nothing_is_done_while_mail_is_carried() -> None:
    assert action(RUNNING) == WAIT


def test_the_first_job_waits_for_all_sites_but_not_for_ever() -> None:
    two = frozenset({"keeper", "leaf-1"})
    assert action(Seen(connected=SITES)) == SUBMIT
    assert action(Seen(connected=two, age_s=PATIENCE_S - 1)) == WAIT
    assert decide(Seen(connected=two, age_s=PATIENCE_S + 1), sites=SITES) == (SUBMIT, "without leaf-2")
    assert action(Seen(age_s=PATIENCE_S + 1)) == WAIT


@pytest.mark.parametrize("site", sorted(SITES))
def test_a_site_that_lost_its_courier_restarts_the_job_at_once(site: str) -> None:
    seen = replace(RUNNING, carrying=SITES - {site})
    assert decide(seen, sites=SITES) == (SUBMIT, f"{site} lost the courier")


def test_a_lost_root_courier_restarts_the_job_at_once() -> None:
    assert action(replace(RUNNING, root_carries=False)) == SUBMIT


def test_a_site_that_does_not_answer_is_left_alone() -> None:
    left = SITES - {"leaf-2"}
    assert action(replace(RUNNING, answering=left, carrying=left)) == WAIT


def test_a_site_that_comes_back_joins_by_a_restart() -> None:
    left = SITES - {"leaf-2"}
    seen = replace(RUNNING, carrying=left, carried=left)
    assert decide(seen, sites=SITES) == (SUBMIT, "leaf-2 came back")
    assert action(replace(seen, age_s=START_S - 1)) == WAIT


def test_a_job_that_is_starting_has_time_to_start() -> None:
    starting = Seen(connected=SITES, answering=SITES, has_job=True, age_s=START_S - 1)
    assert action(starting) == WAIT
    assert action(replace(starting, age_s=START_S + 1)) == SUBMIT


def test_jobs_that_never_run_come_ever_more_seldom() -> None:
    failing = Seen(connected=SITES, answering=SITES, has_job=True, num_failures=10, age_s=MAX_PAUSE_S - 1)
    assert action(failing) == WAIT
    assert action(replace(failing, age_s=MAX_PAUSE_S + 1)) == SUBMIT


def test_a_strange_site_changes_nothing() -> None:
    assert action(replace(RUNNING, answering=SITES | {"stranger"}, connected=SITES | {"stranger"})) == WAIT
