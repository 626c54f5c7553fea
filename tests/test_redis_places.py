"""Every kind of URL leads to the same states: sockets, TLS, databases, sentinels and clusters."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dgents.backends.redis import RedisAgent
from dgents.backends.redis_inspect import inspect_redis
from dgents.backends.redis_url import parse_redis_url
from dgents.runtime.contract import Opened
from dgents.runtime.errors import StorageError, VersionConflictError
from tests.redis_kit import commit, opened, record, write
from tests.redis_server import RedisSentinel, RedisServer, cluster_url, redis_cluster, redis_server
from tests.resources import fake_resources
from tests.tcp_proxy import tcp_proxy
from tests.test_redis_watch import Changes

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    with running.client() as client:
        client.flushall()
    return running


async def test_a_socket_and_a_database_number_are_understood(server: RedisServer) -> None:
    async with opened(f"unix://{server.socket_path}?db=3") as (backend, _):
        assert await commit(backend, 1) is None
    async with opened(server.url.replace("/0", "/3")) as (_, found):
        assert found.record == record(1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for the loopback that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


async def test_tls_is_spoken_and_certificates_are_checked(server: RedisServer, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with tcp_proxy(("127.0.0.1", server.port), tls=context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        async with opened(f"{url}?ssl_ca_certs={certificate}") as (backend, _):
            assert await commit(backend, 1) is None
        with pytest.raises(StorageError) as refused:
            async with opened(url):
                pass
        assert not refused.value.retryable
        with pytest.raises(StorageError):
            async with opened(f"redis://127.0.0.1:{proxy.port}/0?socket_timeout=0.5"):
                pass


async def test_tls_to_a_server_without_it_is_an_error_in_time(server: RedisServer) -> None:
    with pytest.raises(StorageError):
        async with opened(server.url.replace("redis:", "rediss:") + "?socket_timeout=0.5"):
            pass


async def test_a_sentinel_leads_to_the_primary(server: RedisServer, tmp_path: Path) -> None:
    sentinel = RedisSentinel(tmp_path, server).start()
    try:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main/0"
        async with opened(url) as (backend, _), opened(server.url) as (direct, _):
            changed = Changes()
            await backend.subscribe(changed)
            await changed.next()
            assert await commit(backend, 1) is None
            assert await direct.read() == record(1)
            assert await commit(direct, 2) is None
            await changed.next()
        with pytest.raises(StorageError):
            async with opened(f"redis+sentinel://127.0.0.1:{sentinel.port}/another"):
                pass
    finally:
        sentinel.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as server:
        yield cluster_url(server)


async def test_a_cluster_commits_many_slots_at_once(cluster: str) -> None:
    async with fake_resources() as resources:
        agent = RedisAgent(cluster, max_history=3)
        backends = [agent.backend(f"user/{n}", resources) for n in range(50)]
        found: list[Opened] = [await backend.open() for backend in backends]
        base = found[0].record.version if found[0].record else 0
        store = backends[0].store
        assert store is not None
        assert await store.commit([write(backend, base + 1) for backend in backends]) == [None] * 50
        answers = await store.commit([write(backend, base + 1) for backend in backends])
        assert all(isinstance(answer, VersionConflictError) for answer in answers)
        assert (await backends[7].history())[-1] == record(base + 1)
        assert await backends[7].execute("SET", "own", 1) is True
        for backend in backends:
            await backend.close()


async def test_a_cluster_replies_as_one_server_does(server: RedisServer, cluster: str) -> None:
    """What is read of states is read as it came; a user's own command is shaped as redis-py does."""
    replies = []
    for url in (server.url, cluster):
        async with opened(url, "replies", max_history=3) as (backend, _):
            assert await commit(backend, 1) is None
            history, own = backend.keys.history, b"{replies}"
            assert await backend.execute("XADD", own, "1-0", "a", "b") == b"1-0"
            assert await backend.execute("XRANGE", own, "-", "+") == [(b"1-0", {b"a": b"b"})]
            assert await backend.execute("SET", own + b"text", "x") is True
            (entry,) = await backend._open_store.ask(backend.keys, "XRANGE", history, "-", "+")
            (same,) = await backend._open_store.ask(backend.keys, "XREVRANGE", history, "+", "-", "COUNT", 1)
            replies.append([entry[0], entry[1][0], same[0], await backend.execute("XTRIM", own, "MAXLEN", 0)])
            await backend.execute("DEL", backend.keys.state, history, own, own + b"text")
    assert replies[0] == replies[1]


async def test_a_cluster_publishes_changes(cluster: str) -> None:
    async with opened(cluster, "watched") as (mine, _), opened(cluster, "watched") as (theirs, found):
        changed = Changes()
        await mine.subscribe(changed)
        await changed.next()
        version = (found.record.version if found.record else 0) + 1
        assert await commit(theirs, version) is None
        await changed.next()
        assert await mine.read() == record(version)


async def test_an_exclusive_owner_in_a_cluster_fences_the_one_before(cluster: str) -> None:
    async with opened(cluster, "owned", ownership="exclusive") as (old, first):
        async with opened(cluster, "owned", ownership="exclusive") as (_, second):
            assert second.epoch == first.epoch + 1
        assert isinstance(await commit(old, 1), StorageError)


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_the_inspector_lists_keys_and_versions(server: RedisServer, cluster: str, kind: str) -> None:
    url = server.url if kind == "server" else cluster

    async def look() -> None:
        async with opened(url, "a}b", max_history=2) as (backend, found):
            base = found.record.version if found.record else 0
            for version in (base + 1, base + 2, base + 3):
                assert await commit(backend, version) is None
            await backend.execute("SET", "elsewhere", "x")
        async with inspect_redis(url) as inspector:
            keys = [key async for key in inspector.all_keys()]
            assert "a}b" in keys
            assert "elsewhere" not in keys
            assert await inspector.records("a}b") == [record(base + 2), record(base + 3)]
            assert await inspector.records("absent") == []

    anyio.run(look)


@pytest.mark.parametrize(
    ("url", "hosts", "safe"),
    [
        ("redis://", (("localhost", 6379),), "redis://localhost:6379"),
        ("redis://:p%40ss@[::1]:7/2?db=2", (("::1", 7),), "redis://[::1]:7/2"),
        ("unix://ada:pw@/tmp/redis.sock", (), "unix:///tmp/redis.sock"),
        ("redis+sentinel://ada:pw@a,b:1/main/2", (("a", 26379), ("b", 1)), "redis+sentinel://a:26379,b:1/main/2"),
        ("rediss+cluster://ada:pw@a:1,b:2", (("a", 1), ("b", 2)), "rediss+cluster://a:1,b:2"),
    ],
)
def test_urls_are_read_and_named_without_secrets(url: str, hosts: tuple[tuple[str, int], ...], safe: str) -> None:
    place = parse_redis_url(url)
    assert (place.hosts, place.safe) == (hosts, safe)
    assert place.scrub("at p@ss and pw") == place.scrub(place.scrub("at p@ss and pw"))
    assert not any(secret in place.scrub(f"the {secret}") for secret in place.secrets)
