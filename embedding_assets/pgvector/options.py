"""The quiet hours of a day, in which upkeep may load the databases."""

import re
from datetime import UTC, datetime, time
from typing import NamedTuple


class QuietHours(NamedTuple):
    """A part of each day, in UTC, `begin` belonging to it and `end` not; the whole day where both are the same."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "QuietHours":
        """`01:00-05:00`, or `22:30-04:00` over midnight. Raises ValueError for anything else."""
        if not re.fullmatch(r"\d\d:\d\d-\d\d:\d\d", text, re.ASCII):
            raise ValueError("not a time of day and another one, such as 01:00-05:00")
        return cls(*map(time.fromisoformat, text.split("-")))

    @property
    def minutes(self) -> int:
        """How long they last."""
        begin, end = (60 * at.hour + at.minute for at in self)
        return (end - begin - 1) % (24 * 60) + 1

    def contains(self, now: datetime) -> bool:
        """Whether a moment, which knows its time zone, is in them."""
        at = now.astimezone(UTC).time()
        if self.begin < self.end:
            return self.begin <= at < self.end
        return at >= self.begin or at < self.end

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"
