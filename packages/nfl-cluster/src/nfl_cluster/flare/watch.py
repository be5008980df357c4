"""Decide when the courier job has to start again. Pure: no nvflare, no clock.

FLARE itself notices a lost job process late (its own shutdown of the rest takes ten seconds) and a restarted parent not
at all. So the question here is not what FLARE says about the job but where its couriers run:

- a site that answers and has no courier of the present job makes the job start again with it;
- a site that does not answer is away: the others go on without it;
- a replacement is submitted first and the old job aborted after it: two couriers at once do no harm to mailboxes;
- each replacement that did not help doubles the pause before the next.
"""

from __future__ import annotations

from dataclasses import dataclass

START_S = 15.0  # longest time from submission to running couriers on a busy machine
PATIENCE_S = 12.0  # how long a first start waits for all sites before it goes on with those that are there
MAX_PAUSE_S = 60.0
SUBMIT, WAIT = "submit", "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known at one moment.

    Attributes:
        connected: Sites that FLARE's server knows.
        answering: Sites whose parent answered just now.
        carrying: Sites with a courier of the present job.
        root_carries: Whether the root has a courier of the present job.
        has_job: Whether there is a present job.
        complete: Whether its couriers have run at the root and all its members at some time.
        carried: Sites that have had a courier of the present job at some time.
        age_s: Seconds since it was submitted; without a job, since the last look changed.
        num_failures: Jobs in a row, this one included, that were replaced before they were complete.
    """

    connected: frozenset[str] = frozenset()
    answering: frozenset[str] = frozenset()
    carrying: frozenset[str] = frozenset()
    root_carries: bool = False
    has_job: bool = False
    complete: bool = False
    carried: frozenset[str] = frozenset()
    age_s: float = 0.0
    num_failures: int = 0


def decide(seen: Seen, *, sites: frozenset[str]) -> tuple[str, str]:
    """Return SUBMIT or WAIT, and why.

    Args:
        seen: What is known.
        sites: All client sites of the fleet.
    """
    if not seen.has_job:
        if seen.connected >= sites:
            return SUBMIT, "all sites are there"
        if seen.connected & sites and seen.age_s > PATIENCE_S:
            return SUBMIT, f"without {', '.join(sorted(sites - seen.connected))}"
        return WAIT, "for sites"
    pause_s = min(START_S * 2.0**seen.num_failures, MAX_PAUSE_S) if not seen.complete else 0.0
    if not seen.root_carries and (seen.complete or seen.age_s > pause_s):
        return SUBMIT, "the root has no courier"
    idle = (seen.answering & sites) - seen.carrying
    lost = idle & seen.carried
    if lost:
        return SUBMIT, f"{', '.join(sorted(lost))} lost the courier"
    if idle and seen.age_s > max(pause_s, START_S):
        return SUBMIT, f"{', '.join(sorted(idle))} came back"
    return WAIT, "mail is carried"
