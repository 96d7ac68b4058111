"""WebSocket (RFC 6455): CloudEvents, JSON operations, and MQTT and STOMP carried over it."""
