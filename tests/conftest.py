"""Fixtures that several test files share."""

import pytest
from chat_server import Server


@pytest.fixture(scope="module")
def tokenizer():
    from tiny_model import tiny_tokenizer  # torch is imported only where it is needed

    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    from tiny_model import tiny_model

    return tiny_model(tokenizer)


@pytest.fixture
def serve():
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
