"""AMQP 0-9-1, with RabbitMQ's extensions that its stock clients rely on."""
