"""Reply codes of AMQP 0-9-1 (§1.2 "Error codes") and the errors that carry them."""

from typing import Final

from protocols.frontend import ProtocolError

NO_ROUTE: Final = 312
CONNECTION_FORCED: Final = 320
INVALID_PATH: Final = 402
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
RESOURCE_LOCKED: Final = 405
PRECONDITION_FAILED: Final = 406
FRAME_ERROR: Final = 501
SYNTAX_ERROR: Final = 502
COMMAND_INVALID: Final = 503
CHANNEL_ERROR: Final = 504
UNEXPECTED_FRAME: Final = 505
RESOURCE_ERROR: Final = 506
NOT_ALLOWED: Final = 530
NOT_IMPLEMENTED: Final = 540
INTERNAL_ERROR: Final = 541

NAMES: Final = {
    312: "NO_ROUTE",
    320: "CONNECTION_FORCED",
    402: "INVALID_PATH",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    506: "RESOURCE_ERROR",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}


class AmqpError(ProtocolError):
    """The peer broke the protocol: closes the connection with the reply code."""

    def __init__(self, code: int, text: str, method: int = 0) -> None:
        super().__init__(text, code)
        self.code = code
        self.method = method

    @property
    def reply_text(self) -> str:
        """The reply text, `NAME - what`, cut to the 255 bytes of a short string."""
        text = f"{NAMES[self.code]} - {self}"
        return text.encode(errors="replace")[:255].decode(errors="ignore")


class ChannelError(AmqpError):
    """A mistake that closes the channel only (the soft errors of §1.2)."""
