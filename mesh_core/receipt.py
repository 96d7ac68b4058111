"""What a publisher gets back: is the event safe yet, did anyone want it, was it refused.

A receipt that is done at once is one of a few shared constants, so that transient traffic makes
no objects.

Invariant: `done` turns True once, and only then are the callbacks run, each exactly once.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final


class Refusal(Enum):
    """Why an event was not taken; each front-end maps it to its protocol's own code."""

    NOT_AUTHORIZED = "not authorized"
    QUEUE_FULL = "queue is full"
    NO_SUCH_QUEUE = "no such queue"
    STORE_FULL = "store is full"
    STORE_FAILED = "store failed"


class Receipt:
    """The state of one published event.

    Attributes:
        done: whether the outcome is final: every durable target has committed, or one refused.
        routed: whether any subscriber or queue matched.
        refusal: why it was refused; None while pending and when accepted.
    """

    __slots__ = ("_callbacks", "done", "refusal", "routed")

    def __init__(
        self, *, done: bool = False, routed: bool = True, refusal: Refusal | None = None
    ) -> None:
        self.done = done
        self.routed = routed
        self.refusal = refusal
        self._callbacks: list[Callable[[Receipt], None]] = []

    def when_done(self, callback: Callable[["Receipt"], None]) -> None:
        """Call `callback(receipt)` once the outcome is final; at once if it already is."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def finish(self, refusal: Refusal | None = None) -> None:
        """Make the outcome final: accepted, or refused for `refusal`."""
        if self.done:
            return
        self.done = True
        self.refusal = refusal
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


ACCEPTED: Final = Receipt(done=True)
"""Delivered to every target, none of which has anything to commit."""

UNROUTED: Final = Receipt(done=True, routed=False)
"""Nobody wanted it."""

REFUSED: Final = {
    refusal: Receipt(done=True, routed=refusal is not Refusal.NO_SUCH_QUEUE, refusal=refusal)
    for refusal in Refusal
}
"""Refused at once, by reason."""


def combined(receipts: list[Receipt]) -> Receipt:
    """Return the receipt of an event that went to several queues.

    It is accepted once all are; it is refused as soon as all are done and any was refused.
    """
    if not receipts:
        return UNROUTED
    pending = [receipt for receipt in receipts if not receipt.done]
    if not pending:
        for receipt in receipts:
            if receipt.refusal is not None:
                return receipt
        return receipts[0]
    whole = Receipt()
    left = len(pending)

    def one_done(_: Receipt) -> None:
        nonlocal left
        left -= 1
        if not left:
            whole.finish(next((r.refusal for r in receipts if r.refusal is not None), None))

    for receipt in pending:
        receipt.when_done(one_done)
    return whole
