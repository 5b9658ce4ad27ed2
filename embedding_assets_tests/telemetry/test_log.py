"""The log has a line for each ten seconds of a wait, whatever is waited for, and none for a short one."""

import re

import pytest

from embedding_assets.telemetry.events import AnswerAwaited, ItemRead, LockAwaited, RecoveryAwaited, RetryAwaited
from embedding_assets.telemetry.log import Wait, line_of, waits_logged

CLOCK = r"\d\d:\d\d:\d\d"


def lock(seconds: float, what: str = "source 'handbook'") -> LockAwaited:
    return LockAwaited(what, seconds, "session 7")


def test_a_wait_has_a_line_each_ten_seconds() -> None:
    lines: list[str] = []
    log = waits_logged(lines.append)
    logged_at: list[int] = []
    for second in range(1, 36):
        log(lock(second))
        if len(lines) > len(logged_at):
            logged_at.append(second)

    assert logged_at == [10, 20, 30]


def test_many_short_waits_are_none() -> None:
    lines: list[str] = []
    log = waits_logged(lines.append)
    for _ in range(100):
        for second in (1.0, 5.0, 9.0):
            log(lock(second))

    assert lines == []


def test_each_of_two_things_that_are_waited_for_at_once_has_its_lines() -> None:
    lines: list[str] = []
    log = waits_logged(lines.append)
    for second in range(1, 16):
        log(lock(second, "one"))
        log(lock(second - 0.5, "another"))

    assert [line.partition(":")[0] for line in lines] == ["one", "another"]


def test_a_wait_after_another_for_the_same_counts_anew() -> None:
    lines: list[str] = []
    log = waits_logged(lines.append)
    for seconds in (25.0, 2.0, 9.0, 11.0):
        log(lock(seconds))

    assert len(lines) == 2


def test_what_is_no_wait_has_no_line() -> None:
    lines: list[str] = []
    waits_logged(lines.append)(ItemRead(10))

    assert lines == []


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (lock(12), f"source 'handbook': waiting for another run since {CLOCK}: session 7"),
        (AnswerAwaited("model m", 12, 60), f"model m: no answer since {CLOCK}; a request is given up after 60 s"),
        (
            RecoveryAwaited("model m", 12, "throttled: 429", 5, 60),
            rf"model m: no sound answer since {CLOCK} \(throttled: 429\); the next request goes at {CLOCK}, "
            f"until {CLOCK} at the latest",
        ),
        (
            RecoveryAwaited("model m", 12, "unavailable: 503", 0, 60),
            rf"model m: no sound answer since {CLOCK} \(unavailable: 503\); it is asked again, "
            f"until {CLOCK} at the latest",
        ),
        (
            RetryAwaited("chunks of handbook", 12, "the provider is away", 60),
            f"chunks of handbook waits since {CLOCK} until {CLOCK}, then tries again: the provider is away",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_line_says_what_is_waited_for_since_when_and_until_when(event: Wait, line: str) -> None:
    assert re.fullmatch(line, line_of(event))
