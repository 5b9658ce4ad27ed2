"""What a run counts, and what it comes to at its end."""

import math
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Usage:
    """What a run used. `tokens` are the provider's own count where it gives one that can be, and the latencies in
    seconds are those of answered requests, right to 2 %."""

    requests: int = 0
    texts: int = 0
    dead: int = 0
    truncated: int = 0  # texts longer than the model's window, embedded by their beginning
    tokens: int = 0
    discarded_tokens: int = 0  # of them, those of answers that were of no use
    cost_usd: float = 0.0
    seconds: float = 0.0
    retries: int = 0
    throttled: int = 0  # answers of 429
    quota_share: float | None = None  # of the scarcer of the two quotas, on average; None where there is none
    latency_p50: float = 0.0
    latency_p95: float = 0.0
    latency_p99: float = 0.0


@dataclass
class Counts:
    """Counted on the event loop's thread, read from the caller's."""

    requests: int = 0
    texts: int = 0
    dead: int = 0
    truncated: int = 0
    tokens: int = 0
    discarded_tokens: int = 0
    retries: int = 0
    throttled: int = 0
    latencies: "Latencies" = field(default_factory=lambda: Latencies())


class Latencies:
    """A histogram of seconds in steps of 4 %: its size does not grow with the run."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self._counts[round(math.log(max(seconds, 1e-6)) / math.log(1.04))] += 1

    def quantile(self, q: float) -> float:
        """Seconds below which a share `q` lies; 0 of nothing."""
        rank = math.ceil(q * self._counts.total())
        for step in sorted(self._counts):
            rank -= self._counts[step]
            if rank <= 0:
                return float(1.04**step)
        return 0.0
