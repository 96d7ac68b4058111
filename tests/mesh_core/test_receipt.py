"""Receipts: final once, callbacks once, several queues as one."""

from mesh_core.receipt import ACCEPTED, REFUSED, UNROUTED, Receipt, Refusal, combined


def test_callbacks_run_once_when_final() -> None:
    receipt, heard = Receipt(), []
    receipt.when_done(heard.append)
    assert not heard
    receipt.finish()
    receipt.finish(Refusal.STORE_FAILED)
    assert heard == [receipt]
    assert receipt.refusal is None
    receipt.when_done(heard.append)
    assert heard == [receipt, receipt]


def test_the_constants_are_final() -> None:
    assert ACCEPTED.done and ACCEPTED.routed and ACCEPTED.refusal is None
    assert UNROUTED.done and not UNROUTED.routed
    assert all(REFUSED[r].done and REFUSED[r].refusal is r for r in Refusal)


def test_combined_waits_for_all() -> None:
    one, two = Receipt(), Receipt()
    whole = combined([one, ACCEPTED, two])
    one.finish()
    assert not whole.done
    two.finish()
    assert whole.done and whole.refusal is None


def test_combined_is_refused_if_any_is() -> None:
    one, two = Receipt(), Receipt()
    whole = combined([one, two])
    one.finish(Refusal.STORE_FULL)
    assert not whole.done
    two.finish()
    assert whole.done and whole.refusal is Refusal.STORE_FULL
    assert combined([ACCEPTED, REFUSED[Refusal.QUEUE_FULL]]).refusal is Refusal.QUEUE_FULL
    assert combined([ACCEPTED, ACCEPTED]) is ACCEPTED
    assert combined([]) is UNROUTED
