from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from broker.auth.keys import BadKeyError, load_keys
from tests.auth.forging import SECRET, encode, pem, private_pem

RSA_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
FAMILIES = {
    "RSA": RSA_ALGORITHMS,
    "P-256": {"ES256"},
    "P-384": {"ES384"},
    "P-521": {"ES512"},
    "Ed25519": {"EdDSA"},
    "Ed448": {"EdDSA"},
}


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    makers: list[Any] = [RSAAlgorithm, ECAlgorithm, OKPAlgorithm]
    maker = next(maker for maker in makers if isinstance(key, maker._crypto_key_types))
    made: dict[str, Any] = maker.to_jwk(key, as_dict=True)
    return {**made, **members}


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    return jwk(key.public_key(), **members)


def oct_jwk(secret: str = SECRET, **members: Any) -> dict[str, Any]:
    return {"kty": "oct", "k": encode(secret.encode()).decode(), **members}


def certificate(key: Any) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + dt.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def refusal(*entries: str, secret: str | None = None, algorithms: tuple[str, ...] = ()) -> str:
    with pytest.raises(BadKeyError) as caught:
        load_keys(secret, entries, algorithms)
    return str(caught.value)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_pem_key_is_bound_to_its_own_family(kind: str, signers: dict[str, Any]) -> None:
    (key,) = load_keys(None, [pem(signers[kind])], []).keys
    assert key.algorithms == FAMILIES[kind]
    assert key.kid is None


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_jwk_is_bound_to_its_own_family_and_keeps_its_kid(kind: str, signers: dict[str, Any]) -> None:
    (key,) = load_keys(None, [json.dumps(public_jwk(signers[kind], kid="one", use="sig"))], []).keys
    assert key.algorithms == FAMILIES[kind]
    assert key.kid == "one"


def test_a_certificate_gives_its_public_key(signers: dict[str, Any]) -> None:
    (key,) = load_keys(None, [certificate(signers["RSA"])], []).keys
    assert key.key.public_numbers() == signers["RSA"].public_key().public_numbers()


@pytest.mark.parametrize("form", ["pem", "jwk", "set"])
def test_an_entry_may_be_the_path_of_a_file(form: str, tmp_path: Path, signers: dict[str, Any]) -> None:
    one = public_jwk(signers["P-256"])
    text = {"pem": pem(signers["P-256"]), "jwk": json.dumps(one), "set": json.dumps({"keys": [one]})}[form]
    (tmp_path / "key").write_text(f"\n{text}\n")
    (key,) = load_keys(None, [str(tmp_path / "key")], []).keys
    assert key.algorithms == {"ES256"}


def test_pem_on_one_line_with_escaped_line_breaks_is_read(signers: dict[str, Any]) -> None:
    (key,) = load_keys(None, [pem(signers["P-256"]).strip().replace("\n", "\\n")], []).keys
    assert key.algorithms == {"ES256"}


def test_a_secret_serves_the_whole_hmac_family() -> None:
    assert load_keys("s" * 32, [], []).keys[0].algorithms == {"HS256", "HS384", "HS512"}


def test_a_short_secret_is_refused_unless_less_is_asked_for() -> None:
    assert refusal(secret="s" * 31) == "hmac_secret: 31 bytes, at least 32 are needed"
    assert load_keys("s" * 8, [], [], minimum_secret_bytes=8).keys[0].key == b"s" * 8
    assert "JWK" not in refusal(json.dumps(oct_jwk("short")))


def test_no_secret_is_no_key() -> None:
    assert load_keys("", [], []).keys == ()
    assert load_keys(None, [], []).keys == ()


def test_public_material_is_no_secret(signers: dict[str, Any]) -> None:
    for public in (pem(signers["RSA"]), certificate(signers["RSA"]), json.dumps(public_jwk(signers["RSA"]))):
        assert "is no secret" in refusal(secret=public)


def test_algorithms_narrow_what_a_key_may_do(signers: dict[str, Any]) -> None:
    ring = load_keys(SECRET, [pem(signers["RSA"])], ["HS256", "PS256"])
    assert [key.algorithms for key in ring.keys] == [{"HS256"}, {"PS256"}]


def test_a_key_that_no_algorithm_is_left_for_is_refused(signers: dict[str, Any]) -> None:
    assert refusal(pem(signers["P-384"]), algorithms=("ES256",)).startswith("public_keys[0]: it can verify ES384,")
    assert refusal(json.dumps(public_jwk(signers["P-384"], alg="ES256"))).startswith("public_keys[0]: it can verify")


@pytest.mark.parametrize("name", ["none", "hs256", "ES256K", ""])
def test_an_unknown_algorithm_is_refused(name: str) -> None:
    assert refusal(secret=SECRET, algorithms=("HS256", name)).startswith("algorithms: one entry is none of ES256,")


def test_a_jwks_alg_binds_it_to_exactly_that_one(signers: dict[str, Any]) -> None:
    (key,) = load_keys(None, [json.dumps(public_jwk(signers["RSA"], alg="PS384"))], []).keys
    assert key.algorithms == {"PS384"}


def test_an_oct_jwk_is_a_secret() -> None:
    (key,) = load_keys(None, [json.dumps(oct_jwk(kid="s"))], []).keys
    assert key.algorithms == {"HS256", "HS384", "HS512"}
    assert key.key == SECRET.encode()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_private_key_is_refused(kind: str, signers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(private_pem(signers[kind]))
    for entry in (private_pem(signers[kind]), json.dumps(jwk(signers[kind])), str(tmp_path / "key")):
        assert refusal(entry) == "public_keys[0]: a private key, which does not belong here; give its public half"


def test_a_private_key_spoils_a_whole_set(signers: dict[str, Any]) -> None:
    document = {"keys": [public_jwk(signers["P-256"]), jwk(signers["RSA"])]}
    assert refusal(json.dumps(document)).startswith("public_keys[0].keys[1]: a private key")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short RSA", "public_keys[1]: an RSA key of 1024 bits, at least 2048 are needed"),
        ("secp256k1", "public_keys[1]: curve secp256k1 is not supported; P-256, P-384 and P-521 are"),
        ("X25519", "public_keys[1]: this kind of key is not supported; RSA, EC, Ed25519 and Ed448 are"),
        ("DSA", "public_keys[1]: this kind of key is not supported; RSA, EC, Ed25519 and Ed448 are"),
    ],
)
def test_a_key_that_cannot_be_trusted_with_tokens_is_refused(kind: str, message: str, signers: dict[str, Any]) -> None:
    assert refusal(pem(signers["RSA"]), pem(signers[kind])) == message


def test_a_short_rsa_jwk_is_refused(signers: dict[str, Any]) -> None:
    assert "1024 bits" in refusal(json.dumps(public_jwk(signers["short RSA"])))
    assert "1024 bits" in refusal(json.dumps({"keys": [public_jwk(signers["RSA"]), public_jwk(signers["short RSA"])]}))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"kty": "PQ"}, "public_keys[0].kty: one of EC, OKP, RSA, oct is expected"),
        ({"kty": ["EC"]}, "public_keys[0].kty: one of EC, OKP, RSA, oct is expected"),
        ({"use": "enc"}, "public_keys[0].use: sig is expected"),
        ({"key_ops": ["sign"]}, "public_keys[0].key_ops: verify is expected among them"),
        ({"key_ops": "verify"}, "public_keys[0].key_ops: verify is expected among them"),
        ({"kid": 7}, "public_keys[0].kid: text is expected"),
        ({"alg": "ECDH-ES"}, "public_keys[0].alg: one of"),
        ({"alg": {}}, "public_keys[0].alg: one of"),
        ({"crv": "secp256k1"}, "public_keys[0].crv: one of P-256, P-384, P-521 is expected"),
        ({"crv": "P-384"}, "public_keys[0]: a EC key whose members are missing, malformed or not supported"),
        ({"x": None}, "public_keys[0]: a EC key whose members are missing, malformed or not supported"),
        ({"x": "AAAA"}, "public_keys[0]: a EC key whose members are missing, malformed or not supported"),
        ({"y": "!"}, "public_keys[0]: a EC key whose members are missing, malformed or not supported"),
    ],
)
def test_a_jwk_that_is_not_for_verifying_or_malformed_is_refused(
    members: dict[str, Any], message: str, signers: dict[str, Any]
) -> None:
    assert refusal(json.dumps(public_jwk(signers["P-256"], **members))).startswith(message)


def test_a_set_passes_over_keys_made_for_something_else(signers: dict[str, Any]) -> None:
    members = [
        public_jwk(signers["RSA"], use="enc", kid="encryption"),
        public_jwk(signers["RSA"], alg="RSA-OAEP"),
        public_jwk(signers["secp256k1"]),
        {"kty": "future"},
        public_jwk(signers["P-256"], kid="signing"),
        public_jwk(signers["P-384"], kid="not allowed"),
    ]
    ring = load_keys(None, [json.dumps({"keys": members})], ["ES256"])
    assert [key.kid for key in ring.keys] == ["signing"]


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"keys": []}', '{"keys": {}}', '{"keys": [1]}', '{"keys": [{"kty": "future"}]}', "{" * 20_000],
)
def test_json_without_a_usable_key_is_refused(text: str) -> None:
    assert refusal(text).startswith("public_keys[0]")


@pytest.mark.parametrize("entry", ["", "/no/such/file", "/", "a\0b", "x" * 5_000, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"])
def test_an_entry_that_is_nothing_of_all_that_is_refused_without_repeating_it(entry: str) -> None:
    message = refusal(entry)
    assert message.startswith("public_keys[0]: neither PEM text, nor a JWK or JWK set, nor the path of a readable file")
    assert len(message) < 150


def test_a_file_that_holds_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "bytes", "empty"):
        assert refusal(str(tmp_path / name)).startswith("public_keys[0]:")


def test_several_pem_blocks_are_refused_so_that_no_authority_becomes_a_signer(signers: dict[str, Any]) -> None:
    chain = certificate(signers["P-256"]) + certificate(signers["RSA"])
    assert refusal(chain).startswith("public_keys[0]: 2 PEM blocks, exactly one is expected")


@pytest.mark.parametrize("label", ["PUBLIC KEY", "CERTIFICATE", "DH PARAMETERS", "NONSENSE"])
def test_pem_that_cannot_be_read_is_refused(label: str) -> None:
    text = f"-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n"
    assert refusal(text).startswith("public_keys[0]: PEM text that holds no public key")


def test_a_ring_finds_keys_by_algorithm_and_kid(signers: dict[str, Any]) -> None:
    old, new, plain = (
        json.dumps(public_jwk(signers["RSA"], kid="old")),
        json.dumps(public_jwk(signers["other RSA"], kid="new")),
        pem(signers["RSA"]),
    )
    ring = load_keys(SECRET, [old, new, plain], [])
    by_kid = {key.kid: key for key in ring.keys if "RS256" in key.algorithms}
    assert ring.candidates("RS256", "old") == (by_kid["old"],)
    assert ring.candidates("RS256", "new") == (by_kid["new"],)
    assert ring.candidates("RS256", "unknown") == (by_kid[None],)
    assert ring.candidates("RS256", None) == (by_kid["old"], by_kid["new"], by_kid[None])
    assert [key.key for key in ring.candidates("HS256", None)] == [SECRET.encode()]


def test_a_known_kid_names_nothing_under_another_familys_algorithm(signers: dict[str, Any]) -> None:
    ring = load_keys(SECRET, [json.dumps(public_jwk(signers["RSA"], kid="a"))], [])
    assert ring.candidates("HS256", "a") == ()
    assert ring.candidates("HS256", "b") != ()


@pytest.mark.parametrize("alg", ["none", "NONE", "", "ES256", "hs256", "HS1"])
def test_a_ring_has_no_candidates_for_an_algorithm_without_a_key(alg: str) -> None:
    assert load_keys(SECRET, [], []).candidates(alg, None) == ()


def test_keys_do_not_show_their_secrets() -> None:
    ring = load_keys(SECRET, [json.dumps(oct_jwk())], [])
    assert SECRET not in repr(ring)
    assert SECRET not in repr(ring.keys)


def test_messages_never_show_key_material(signers: dict[str, Any]) -> None:
    short = "not long enough"
    assert short not in refusal(secret=short)
    assert encode(short.encode()).decode() not in refusal(json.dumps(oct_jwk(short)))
    private = private_pem(signers["P-256"])
    assert private.splitlines()[1] not in refusal(private)
    broken = private.replace("PRIVATE", "PUBLIC")
    assert broken.splitlines()[1] not in refusal(broken)
