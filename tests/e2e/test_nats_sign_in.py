"""Every way to sign in to NATS."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.client import connected
from tests.harness.nats import NatsServer
from tests.harness.nats_accounts import Nkey, Operator
from tests.harness.node import BrokerNode
from tests.harness.site import Site
from tests.harness.tls import Authority
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

PASSWORD = {"authorization": {"user": "broker", "password": "a-password-for-nats"}}
TOKEN = {"authorization": {"token": "a-token-for-nats"}}


async def works(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("news",)) as client:
        await node.publish("news", 1)
        assert await client.publication("news") == 1


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (PASSWORD, {"user": "broker", "password": "a-password-for-nats"}),
        (TOKEN, {"token": "a-token-for-nats"}),
    ],
    ids=["user and password", "token"],
)
async def test_secrets_of_the_settings(site: Site, options: dict[str, Any], settings: dict[str, Any]) -> None:
    node = site.start_node(site.start_nats(options), {"nats": settings})

    await works(node)
    for secret in ("a-password-for-nats", "a-token-for-nats"):
        assert secret not in node.log()


async def test_a_password_in_the_url_is_not_logged(site: Site) -> None:
    server = site.start_nats(PASSWORD)
    node = site.start_node(f"nats://broker:a-password-for-nats@127.0.0.1:{server.port}")

    await works(node)
    assert "a-password-for-nats" not in node.log()


async def test_an_nkey(site: Site) -> None:
    nkey = Nkey.make("user")
    seed = site.directory / "user.nk"
    seed.write_text(nkey.seed)
    server = site.start_nats({"authorization": {"users": [{"nkey": nkey.public}]}})

    await works(site.start_node(server, {"nats": {"nkey_file": str(seed)}}))


async def test_a_credentials_file(site: Site) -> None:
    operator = Operator()
    credentials = site.directory / "user.creds"
    operator.write_credentials(credentials)
    server = site.start_nats(operator.options())

    await works(site.start_node(server, {"nats": {"credentials_file": str(credentials)}}))


@pytest.mark.parametrize("with_certificate", [False, True], ids=["server only", "mutual"])
async def test_tls(site: Site, *, with_certificate: bool) -> None:
    authority = Authority(site.directory)
    own, node_s = authority.issue("nats"), authority.issue("node")
    tls = {"cert_file": str(own.certificate), "key_file": str(own.key), "ca_file": str(authority.file)}
    server = site.start_nats({"tls": {**tls, "verify": with_certificate}})
    settings = {"tls_ca": str(authority.file)}
    if with_certificate:
        settings |= {"tls_cert": str(node_s.certificate), "tls_key": str(node_s.key)}

    await works(site.start_node(f"tls://127.0.0.1:{server.port}", {"nats": settings}))


async def refused(site: Site, server: NatsServer | str, settings: dict[str, Any], because: str) -> None:
    node = site.add_node(server, {"nats": settings})
    node.start()
    await eventually(lambda: because in node.log())
    assert (await node.health()).status == 503
    assert await node.stopped() == 0


async def test_a_wrong_password_keeps_the_node_unready_and_is_logged_once(site: Site) -> None:
    server = site.start_nats(PASSWORD)

    await refused(site, server, {"user": "broker", "password": "wrong-password"}, "Authorization Violation")
    assert site.nodes[0].log().count("cannot connect to NATS") == 1
    assert "wrong-password" not in site.nodes[0].log()


async def test_a_server_that_nobody_vouches_for_is_not_trusted(site: Site) -> None:
    own = Authority(site.directory).issue("nats")
    server = site.start_nats({"tls": {"cert_file": str(own.certificate), "key_file": str(own.key)}})

    await refused(site, f"tls://127.0.0.1:{server.port}", {}, "CERTIFICATE_VERIFY_FAILED")
