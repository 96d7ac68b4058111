"""Messages that were pulled over REST and wait for their acknowledgement.

A request ends; what it pulled is held here, by an unguessable name, until it is settled or its
time is over, and then goes back to its queue.

Invariant: every delivery is here from the pull until it is settled, once.
"""

import secrets
from collections.abc import Callable

from mesh_core.queue import Delivery, Outcome


class Deliveries:
    """The held deliveries of a node.

    Attributes:
        ack_timeout: seconds after which an unsettled delivery goes back.
    """

    def __init__(self, clock: Callable[[], float], ack_timeout: float = 60.0) -> None:
        self.ack_timeout = ack_timeout
        self._clock = clock
        # In order of time, since all have the same timeout.
        self._held: dict[str, tuple[Delivery, float]] = {}

    def __len__(self) -> int:
        """Return how many are held."""
        return len(self._held)

    def hold(self, delivery: Delivery) -> str:
        """Hold `delivery`; return the name to settle it by."""
        name = secrets.token_urlsafe(12)
        self._held[name] = (delivery, self._clock() + self.ack_timeout)
        return name

    def settle(self, queue: str, name: str, outcome: Outcome) -> bool:
        """Settle by name; False if there is no such delivery of `queue` (any more)."""
        held = self._held.get(name)
        if held is None or held[0].queue.name != queue:
            return False
        del self._held[name]
        return held[0].settle(outcome)

    def expire(self) -> float | None:
        """Give back what has waited too long; return seconds until the next, None for none."""
        now = self._clock()
        while self._held:
            name, (delivery, deadline) = next(iter(self._held.items()))
            if deadline > now:
                return deadline - now
            del self._held[name]
            delivery.settle(Outcome.RELEASE)
        return None
