from __future__ import annotations

import pytest

from llama_index_colqwen import EndpointEmbedder, InvalidOptionError, MilvusPageStore
from llama_index_colqwen.addresses import split_address

NO_ADDRESSES = [
    "", "localhost:8000", "http://", "https:///path", "http://[::1", "http://a b", "ftp://host",
    "http://127.0.0.1:65536", "http://127.0.0.1:-1", "http://127.0.0.1:x",
]  # fmt: skip


@pytest.mark.parametrize(("address", "host", "port"), [
    ("http://127.0.0.1:65535", "127.0.0.1", 65535), ("HTTPS://Host.example/path", "host.example", None),
    ("http://[::1]:80", "::1", 80), ("http://user:pass@host:1", "host", 1),
])  # fmt: skip
def test_addresses_are_split(address: str, host: str, port: int | None) -> None:
    parts = split_address(address)
    assert parts is not None
    assert (parts.hostname, parts.port) == (host, port)


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_no_service_can_have_is_a_sentence(address: str) -> None:
    assert split_address(address) is None
    with pytest.raises(InvalidOptionError, match="a host and perhaps a port; got"):
        EndpointEmbedder(address)
    with pytest.raises(InvalidOptionError, match="uri is no server's address|a path ending in .db"):
        MilvusPageStore(address)


def test_passwords_in_a_stores_address_are_not_shown() -> None:
    for address in ("http://root:s3cret@localhost:x", "http://root:s3/cret@localhost", "tcp://:99999/s3cret"):
        with pytest.raises(InvalidOptionError, match="uri is no server's address") as error:
            MilvusPageStore(address)
        assert "cret" not in str(error.value)
    assert MilvusPageStore("tcp://root:s3cret@localhost:19530").uri == "tcp://localhost:19530"


@pytest.mark.parametrize("token", ["caf\u00e9", "two\nlines", 5])
def test_a_token_that_cannot_be_sent_is_not_shown(token: str) -> None:
    with pytest.raises(InvalidOptionError, match="printable ASCII") as error:
        EndpointEmbedder("http://127.0.0.1:9", token=token)
    assert str(token) not in str(error.value)
