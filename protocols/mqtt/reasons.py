"""Reason codes of MQTT 5.0 (§2.4) and return codes of MQTT 3.1.1 (§3.2.2.3), and the error."""

from typing import Final

from mesh_core.receipt import Refusal
from protocols.frontend import ProtocolError

SUCCESS: Final = 0x00
WITH_WILL: Final = 0x04
NO_MATCHING_SUBSCRIBERS: Final = 0x10
NO_SUBSCRIPTION_EXISTED: Final = 0x11
UNSPECIFIED: Final = 0x80
MALFORMED: Final = 0x81
PROTOCOL: Final = 0x82
IMPLEMENTATION: Final = 0x83
UNSUPPORTED_VERSION: Final = 0x84
BAD_CLIENT_ID: Final = 0x85
BAD_CREDENTIALS: Final = 0x86
NOT_AUTHORIZED: Final = 0x87
SHUTTING_DOWN: Final = 0x8B
BAD_AUTHENTICATION_METHOD: Final = 0x8C
KEEP_ALIVE_TIMEOUT: Final = 0x8D
TAKEN_OVER: Final = 0x8E
FILTER_INVALID: Final = 0x8F
TOPIC_INVALID: Final = 0x90
PACKET_ID_IN_USE: Final = 0x91
PACKET_ID_NOT_FOUND: Final = 0x92
RECEIVE_MAXIMUM_EXCEEDED: Final = 0x93
TOPIC_ALIAS_INVALID: Final = 0x94
PACKET_TOO_LARGE: Final = 0x95
QUOTA_EXCEEDED: Final = 0x97
PAYLOAD_FORMAT_INVALID: Final = 0x99

# MQTT 3.1.1 §3.2.2.3, for the reasons that a CONNACK can have there.
RETURN_CODES: Final = {
    UNSUPPORTED_VERSION: 1,
    BAD_CLIENT_ID: 2,
    SHUTTING_DOWN: 3,
    BAD_CREDENTIALS: 4,
    NOT_AUTHORIZED: 5,
}

OF_REFUSAL: Final = {
    Refusal.NOT_AUTHORIZED: NOT_AUTHORIZED,
    Refusal.QUEUE_FULL: QUOTA_EXCEEDED,
    Refusal.NO_SUCH_QUEUE: TOPIC_INVALID,
    Refusal.STORE_FULL: QUOTA_EXCEEDED,
    Refusal.STORE_FAILED: IMPLEMENTATION,
}


class MqttError(ProtocolError):
    """The peer broke the protocol; `reason` is the reason code to answer with."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message, reason)
        self.code = reason
