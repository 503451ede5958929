"""What a worker's thread does next: its states, and the events that lead from one to the next. `workers` reads the table.

                +------------------------- ACCEPTED -------------------------+
                v                                                            |
    start -> WAITING -- JOB --> WORKING -- DONE --> HANDING_ON --------------+
               | |                 |                  ^   |
               | +--- FAILED_JOB --|------------------+   |
               |                   |                      |
               |                  LOST                 REFUSED
               |                   v                      |
               +-- OVER --------> LEFT <------------------+
                   LINE_GIVEN_UP

A worker that is lost while no other worker can take over its job stays: it fails that job (DONE, with a `Failure` as the
result) and all that follow.
"""

from __future__ import annotations

from enum import IntEnum


class WorkerState(IntEnum):
    """Where a worker is in its loop."""

    WAITING = 0  # for a job from the queue before its stage
    WORKING = 1  # on a job; it may be lost in the middle of it
    HANDING_ON = 2  # the job to the next stage, or to the results; it may wait for a free place
    LEFT = 3  # for good: its thread ends


class WorkerEvent(IntEnum):
    """What ends a state."""

    JOB = 0  # came, to be worked on
    FAILED_JOB = 1  # came, which an earlier stage has failed on
    LINE_GIVEN_UP = 2  # a job came, and was put back for another line
    OVER = 3  # no job can come any more, or the workers were stopped
    DONE = 4  # the work gave a result, or an error, which is a `Failure` from now on
    LOST = 5  # the worker is lost; another one takes over the job
    ACCEPTED = 6  # the next queue, or the results, took the job
    REFUSED = 7  # the workers were stopped while it waited for a free place


# As plain names: each is looked up with every item.
WAITING, WORKING, HANDING_ON, LEFT = WorkerState
JOB, FAILED_JOB, LINE_GIVEN_UP, OVER, DONE, LOST, ACCEPTED, REFUSED = WorkerEvent
TRANSITIONS: dict[WorkerState, dict[WorkerEvent, WorkerState]] = {
    WAITING: {JOB: WORKING, FAILED_JOB: HANDING_ON, LINE_GIVEN_UP: LEFT, OVER: LEFT},
    WORKING: {DONE: HANDING_ON, LOST: LEFT},
    HANDING_ON: {ACCEPTED: WAITING, REFUSED: LEFT},
    LEFT: {},
}


def next_state(state: WorkerState, event: WorkerEvent) -> WorkerState:
    """The state that follows by the table. Raises ValueError where the event cannot happen in that state.

    >>> next_state(WorkerState.WORKING, WorkerEvent.LOST).name
    'LEFT'
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise ValueError(f"a worker that is {state.name} cannot meet {event.name}") from None
