"""Redis over TLS: all works, and an untrusted side is refused. The wheel's server has no TLS: see `TlsProxy`."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import redis

from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import ConfigurationError, RedisUnavailable
from imcore.model.values import Message
from imcore.settings import Settings
from imcore.streams.client import open_client
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer
from tests.helpers.tls_proxy import CERTIFICATES, TlsProxy
from tests.helpers.workers import start_worker

AUTHORITY = CERTIFICATES / "ca.pem"
PASSPHRASE = "correct-horse"
EXPECTED = ("appendonly is no", "as somebody reads from it: the worker persist empties it")
"""Warnings that have nothing to do with TLS: of a setting of the server, and of a trim while others read SQLite."""


@pytest.fixture
def proxy(valkey_server: RunningServer, valkey: str) -> Iterator[TlsProxy]:
    with TlsProxy(str(valkey_server.server.socket)) as proxy:
        yield proxy


@pytest.fixture
def redis_url(proxy: TlsProxy) -> str:
    return f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={AUTHORITY}"


def test_chat_and_workers_use_an_encrypted_connection(settings: Settings, proxy: TlsProxy) -> None:
    # Given workers on an encrypted connection
    folder = settings.data_dir / "processes"
    with (
        start_worker(settings, "persist") as persist,
        start_worker(settings, "receipts") as receipts,
        start_worker(settings, "jobs") as jobs,
        Chat.connect(settings=settings) as chat,
    ):
        # When bob listens, and ann sends much at once
        chat.create_group("team", ["ann", "bob"])
        texts = [f"{number}" + "x" * 60_000 for number in range(20)]
        with Chat.connect(settings=settings) as bobs, closing(LocalDatabase(path_of(folder, "bob"), "bob")) as local:
            heard: list[str] = []
            live = Device(bobs, "bob", local).live(lambda: len(heard) == len(texts), ack_every=1)
            chat.send("team", texts[0], sender_uid="ann")
            for event in live:
                assert isinstance(event, Message)
                heard.append(event.content)
                if len(heard) == 1:
                    for text in texts[1:]:
                        chat.send("team", text, sender_uid="ann")

        # Then he has received all of it, and the workers do their work
        assert heard == texts
        with chat.listen("ann") as anns:
            assert next(iter(anns))
        jobs.wait_for("trimmed")
        persist.wait_for("working as")
        wait_until(lambda: len(chat.system.database.messages_after("team", 0)) == len(texts), timeout_s=30)
        assert [worker.end() for worker in (persist, receipts, jobs)] == [0, 0, 0]
    assert proxy.connections >= 6
    for worker in (persist, receipts, jobs):
        assert [warning for warning in worker.warnings if not any(words in warning for words in EXPECTED)] == []


def test_users_and_passwords_work_over_tls(settings: Settings, valkey: str) -> None:
    with redis.Redis.from_url(valkey) as admin:
        admin.execute_command("ACL", "SETUSER", "ann", "reset", "on", f">{PASSPHRASE}", "~*", "&*", "+@all")
        try:
            url = settings.redis_url.replace("://", f"://ann:{PASSPHRASE}@")
            with Chat.connect(settings=replace(settings, redis_url=url)) as chat:
                assert chat.create_group("team").members == 0
        finally:
            admin.acl_deluser("ann")


def test_a_server_that_is_not_trusted_is_refused(settings: Settings, proxy: TlsProxy) -> None:
    for url in (
        settings.redis_url.replace("ca.pem", "other-ca.pem"),
        settings.redis_url.partition("?")[0],
    ):
        with (
            Chat.connect(settings=replace(settings, redis_url=url)) as chat,
            pytest.raises(ConfigurationError) as refused,
        ):
            chat.unread("ann")
        assert str(refused.value).startswith(f"rediss://127.0.0.1:{proxy.port} is not trusted (")
        assert "?ssl_ca_certs=FILE" in str(refused.value)


def test_a_server_of_another_name_is_refused(
    settings: Settings, proxy: TlsProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The certificate names 127.0.0.1 and localhost; this is another way to the same place.
    url = settings.redis_url.replace("127.0.0.1", "127.1")
    with Chat.connect(settings=replace(settings, redis_url=url)) as chat, pytest.raises(ConfigurationError) as refused:
        chat.unread("ann")
    assert "not trusted" in str(refused.value)


def test_a_client_certificate_is_shown_on_demand(valkey_server: RunningServer, valkey: str, settings: Settings) -> None:
    with TlsProxy(str(valkey_server.server.socket), clients_show_certificates=True) as strict:
        url = f"rediss://localhost:{strict.port}?ssl_ca_certs={AUTHORITY}"
        shown = f"{url}&ssl_certfile={CERTIFICATES / 'client.pem'}&ssl_keyfile={CERTIFICATES / 'client.pem'}"
        with Chat.connect(settings=replace(settings, redis_url=shown)) as chat:
            assert chat.create_group("team").members == 0
        with Chat.connect(settings=replace(settings, redis_url=url)) as chat, pytest.raises(RedisUnavailable):
            chat.unread("ann")


def test_a_connection_without_tls_gets_no_answer(settings: Settings, proxy: TlsProxy) -> None:
    url = f"redis://127.0.0.1:{proxy.port}"
    with Chat.connect(settings=replace(settings, redis_url=url)) as chat, pytest.raises(RedisUnavailable):
        chat.unread("ann")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("rediss://host?ssl_ca_certs=/nowhere.pem", r"the file /nowhere.pem \(option ssl_ca_certs of rediss://host\)"),
        (f"rediss://host?ssl_ca_certs={__file__}", "NO_CERTIFICATE_OR_CRL_FOUND"),
        (f"rediss://host?ssl_certfile={__file__}", "option ssl_certfile"),
        ("rediss://host?ssl_cert_reqs=sometimes", "wrong option"),
        ("redis://host?ssl_ca_certs=/nowhere.pem", "TLS is for rediss://"),
        ("redis://host?colour=red", "does not take the option 'colour'"),
        ("redis://host?decode_responses=true", "does not take the option 'decode_responses'"),
        ("redis://host?socket_timeout=soon", "is not valid"),
    ],
)
def test_impossible_tls_options_are_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as refused:
        open_client(url)
    assert "\n" not in str(refused.value)
