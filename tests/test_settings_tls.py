"""Certificates and keys are tried when the settings are loaded, not when the first client comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from broker.settings import SettingsError, load
from broker.settings.tls import Problem, certificate_problem
from tests.harness.tls import Authority

SECTIONS = ("http", "nats")
NO_CERTIFICATE = "holds no certificate that can be read; give a PEM file"
NO_KEY = "holds no private key that can be read without a password; give a PEM file"
NOT_ITS_KEY = "is not the key of the certificate in tls_cert; give the two that belong together"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    authority = Authority(tmp_path)
    one, two = authority.issue("one"), authority.issue("two")
    encrypted, junk, broken = (tmp_path / name for name in ("encrypted.key", "junk.pem", "broken.pem"))
    encrypted.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        )
    )
    junk.write_text("no PEM at all")
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return {
        "authority": str(authority.file),
        "certificate": str(one.certificate),
        "key": str(one.key),
        "another key": str(two.key),
        "encrypted key": str(encrypted),
        "junk": str(junk),
        "broken": str(broken),
    }


def mistakes(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load(None, {}, tree)
    return list(refused.value.mistakes)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_certificate_with_its_key_is_taken(section: str, files: dict[str, str]) -> None:
    load(None, {}, {section: {"tls_cert": files["certificate"], "tls_key": files["key"]}})


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    ("certificate", "key", "complaint"),
    [
        ("junk", "key", f"tls_cert: {NO_CERTIFICATE}"),
        ("broken", "key", f"tls_cert: {NO_CERTIFICATE}"),
        ("key", "key", f"tls_cert: {NO_CERTIFICATE}"),
        ("junk", "junk", f"tls_cert: {NO_CERTIFICATE}"),
        ("certificate", "another key", f"tls_key: {NOT_ITS_KEY}"),
        ("certificate", "junk", f"tls_key: {NO_KEY}"),
        ("certificate", "certificate", f"tls_key: {NO_KEY}"),
        ("certificate", "encrypted key", f"tls_key: {NO_KEY}"),
    ],
)
def test_what_no_tls_can_be_spoken_with_is_one_line_that_names_it(
    section: str, certificate: str, key: str, complaint: str, files: dict[str, str]
) -> None:
    said = mistakes({section: {"tls_cert": files[certificate], "tls_key": files[key]}})

    assert said == [f"flag {section}.{complaint}"]


def test_authorities_are_certificates(files: dict[str, str]) -> None:
    load(None, {}, {"nats": {"tls_ca": files["authority"]}})
    for name in ("junk", "broken", "key"):
        assert mistakes({"nats": {"tls_ca": files[name]}}) == [f"flag nats.tls_ca: {NO_CERTIFICATE}"]


def test_all_that_is_wrong_with_tls_is_said_at_once(files: dict[str, str]) -> None:
    wrong = {"tls_cert": files["certificate"], "tls_key": files["another key"]}

    assert mistakes({"http": wrong, "nats": {**wrong, "tls_ca": files["junk"]}}) == [
        f"flag http.tls_key: {NOT_ITS_KEY}",
        f"flag nats.tls_key: {NOT_ITS_KEY}",
        f"flag nats.tls_ca: {NO_CERTIFICATE}",
    ]


def test_a_key_that_is_gone_meanwhile_is_a_mistake_too(files: dict[str, str]) -> None:
    problem = certificate_problem(Path(files["certificate"]), Path("/nowhere/key"))

    assert problem == Problem("tls_cert", "or tls_key cannot be read as a file: No such file or directory")
