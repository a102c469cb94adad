"""Attacks on a token's envelope. Each is a token that a careless verifier would take."""

from __future__ import annotations

import json
import traceback
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from jwt.algorithms import ECAlgorithm

from broker.auth.jws import RefusedError, open_token
from broker.auth.keys import KeyRing, load_keys
from tests.auth.forging import GOOD, OTHER_SECRET, SECRET, encode, forge, hs256, pem
from tests.auth.test_keys import public_jwk

RING = load_keys(SECRET, [], [])
BODY = forge().split(".")[1]
SIGNING = {
    "HS256": None,
    "HS384": None,
    "HS512": None,
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
}


def refusal(token: str, ring: KeyRing = RING) -> str:
    with pytest.raises(RefusedError) as caught:
        open_token(token, ring)
    return str(caught.value)


def opened(token: str, ring: KeyRing = RING) -> Any:
    return json.loads(open_token(token, ring))


@pytest.fixture(scope="module")
def full_ring(signers: dict[str, Any]) -> KeyRing:
    kinds = ("RSA", "P-256", "P-384", "P-521", "Ed25519", "Ed448")
    return load_keys(SECRET, [pem(signers[kind]) for kind in kinds], [])


@pytest.mark.parametrize("alg", SIGNING)
def test_a_token_of_every_algorithm_is_opened(alg: str, signers: dict[str, Any], full_ring: KeyRing) -> None:
    kind = SIGNING[alg]
    assert opened(jwt.encode(GOOD, signers[kind] if kind else SECRET, alg), full_ring) == GOOD


@pytest.mark.parametrize("kind", ["Ed25519", "Ed448"])
def test_an_eddsa_token_is_opened_whatever_the_curve(kind: str, signers: dict[str, Any], full_ring: KeyRing) -> None:
    assert opened(jwt.encode(GOOD, signers[kind], "EdDSA"), full_ring) == GOOD


@pytest.mark.parametrize("alg", SIGNING)
def test_a_token_of_another_signer_is_refused(alg: str, signers: dict[str, Any], full_ring: KeyRing) -> None:
    kind = SIGNING[alg]
    token = jwt.encode(GOOD, signers[f"other {kind}"] if kind else OTHER_SECRET, alg)
    assert refusal(token, full_ring) == "signature: does not verify"


@pytest.mark.parametrize("form", ["pem", "pem without its last line break", "der", "jwk"])
def test_a_public_key_is_never_a_secret(form: str, signers: dict[str, Any]) -> None:
    text = pem(signers["RSA"])
    forms = {
        "pem": text.encode(),
        "pem without its last line break": text.rstrip().encode(),
        "der": b"".join(text.encode().splitlines()[1:-1]),
        "jwk": json.dumps(public_jwk(signers["RSA"])).encode(),
    }
    token = forge(sign=hs256(forms[form]))
    assert refusal(token, load_keys(None, [text], [])) == "alg: no key for this algorithm and key id"
    assert refusal(token, load_keys(SECRET, [text], [])) == "signature: does not verify"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "none ", "", "HS256 ", "hs256", "HS1", "dir"])
@pytest.mark.parametrize("signature", [b"", b"x", b"right"])
def test_a_token_without_a_known_algorithm_is_refused(alg: str, signature: bytes) -> None:
    token = forge(header={"alg": alg}, sign=hs256() if signature == b"right" else lambda _: signature)
    refusal(token)


@pytest.mark.parametrize("alg", [None, 1, True, [], ["HS256"], {"HS256": 1}])
def test_an_alg_that_is_no_string_is_refused(alg: object) -> None:
    assert refusal(forge(header={"alg": alg})) == "header: not a JOSE header with an alg"


def test_a_header_without_alg_is_refused() -> None:
    assert refusal(forge(header={"typ": "JWT"})) == "header: not a JOSE header with an alg"


def test_an_ec_key_serves_only_its_own_curves_algorithm(signers: dict[str, Any]) -> None:
    ring = load_keys(None, [pem(signers["P-384"])], [])
    sha256 = ECAlgorithm(ECAlgorithm.SHA256)  # without a curve of its own, so it signs what an unbound key would verify
    for alg in ("ES256", "ES512", "ES256K"):
        token = forge(header={"alg": alg}, sign=lambda message: sha256.sign(message, signers["P-384"]))
        assert refusal(token, ring) == "alg: no key for this algorithm and key id"


def test_pss_and_pkcs1_signatures_are_not_taken_for_each_other(signers: dict[str, Any]) -> None:
    ring = load_keys(None, [pem(signers["RSA"])], [])
    for written, made in (("RS256", "PS256"), ("PS256", "RS256"), ("RS512", "RS256")):
        algorithm = jwt.get_algorithm_by_name(made)
        token = forge(header={"alg": written}, sign=partial(algorithm.sign, key=signers["RSA"]))
        assert refusal(token, ring) == "signature: does not verify"


def test_an_rsa_key_narrowed_to_rs256_takes_nothing_else(signers: dict[str, Any]) -> None:
    ring = load_keys(None, [pem(signers["RSA"])], ["RS256"])
    assert opened(jwt.encode(GOOD, signers["RSA"], "RS256"), ring) == GOOD
    for alg in ("PS256", "RS384"):
        assert refusal(jwt.encode(GOOD, signers["RSA"], alg), ring) == "alg: no key for this algorithm and key id"


@pytest.mark.parametrize(
    "crit",
    [["exp"], ["b64"], ["unknown"], [], "exp", None, 0, False, {}, [1], ["alg"]],
    ids=json.dumps,
)
def test_any_crit_is_refused_malformed_ones_too(crit: object) -> None:
    token = forge(header={"alg": "HS256", "crit": crit, "exp": 1, "unknown": 1, "b64": True})
    assert refusal(token) == "crit: no critical extension is supported"


@pytest.mark.parametrize("b64", [False, None, 0, "false", "true", []])
def test_an_unencoded_payload_is_refused(b64: object) -> None:
    assert refusal(forge(header={"alg": "HS256", "b64": b64})) == "b64: only encoded payloads are supported"


def test_b64_true_says_nothing() -> None:
    assert opened(forge(header={"alg": "HS256", "b64": True})) == GOOD


def test_a_key_that_the_token_brings_along_is_not_looked_at(signers: dict[str, Any]) -> None:
    own = signers["other RSA"]
    headers = {
        "jwk": public_jwk(own),
        "jku": "https://attacker.example/jwks",
        "x5u": "https://attacker.example/cert",
        "x5c": ["AAAA"],
    }
    ring = load_keys(None, [pem(signers["RSA"])], [])
    assert refusal(jwt.encode(GOOD, own, "RS256", headers=headers), ring) == "signature: does not verify"
    assert opened(jwt.encode(GOOD, signers["RSA"], "RS256", headers=headers), ring) == GOOD


@pytest.mark.parametrize("kid", [None, 1, [], {"a": 1}, True])
def test_a_kid_that_is_no_string_is_refused(kid: object) -> None:
    assert refusal(forge(header={"alg": "HS256", "kid": kid})) == "header: not a JOSE header with an alg"


@pytest.mark.parametrize("kid", ["", "../../dev/null", "' OR 1=1 --", "\0", "a" * 5_000, "ключ"])
def test_a_kid_chooses_only_among_the_keys_there_are(kid: str) -> None:
    assert opened(forge(header={"alg": "HS256", "kid": kid})) == GOOD
    assert refusal(forge(header={"alg": "HS256", "kid": kid}, sign=hs256(b""))) == "signature: does not verify"


def test_a_kid_pins_its_key(signers: dict[str, Any]) -> None:
    ring = load_keys(
        SECRET,
        [json.dumps(public_jwk(signers["RSA"], kid="a")), json.dumps(public_jwk(signers["other RSA"], kid="b"))],
        [],
    )
    for kid, signer in (("a", "RSA"), ("b", "other RSA"), (None, "RSA"), (None, "other RSA")):
        headers = {"kid": kid} if kid else None
        assert opened(jwt.encode(GOOD, signers[signer], "RS256", headers=headers), ring) == GOOD
    assert (
        refusal(jwt.encode(GOOD, signers["RSA"], "RS256", headers={"kid": "b"}), ring) == "signature: does not verify"
    )
    assert refusal(jwt.encode(GOOD, signers["RSA"], "RS256", headers={"kid": "c"}), ring).startswith("alg:")
    assert refusal(jwt.encode(GOOD, SECRET, "HS256", headers={"kid": "a"}), ring).startswith("alg:")


def test_two_keys_are_accepted_while_they_rotate(signers: dict[str, Any]) -> None:
    ring = load_keys(None, [pem(signers["P-256"]), pem(signers["other P-256"])], [])
    for signer in ("P-256", "other P-256"):
        assert opened(jwt.encode(GOOD, signers[signer], "ES256"), ring) == GOOD


@pytest.mark.parametrize("kind", ["P-256", "Ed25519", "RSA"])
def test_trivial_signatures_are_refused(kind: str, signers: dict[str, Any]) -> None:
    alg = {"P-256": "ES256", "Ed25519": "EdDSA", "RSA": "RS256"}[kind]
    ring = load_keys(None, [pem(signers[kind])], [])
    for signature in (bytes(64), bytes(256), b"\x01" * 64, b"\0", b"\xff" * 64):  # the zeros: CVE-2022-21449
        token = f"{encode(json.dumps({'alg': alg}).encode()).decode()}.{BODY}.{encode(signature).decode()}"
        assert refusal(token, ring) == "signature: does not verify"


def test_a_der_encoded_ecdsa_signature_is_refused(signers: dict[str, Any]) -> None:
    ring = load_keys(None, [pem(signers["P-256"])], [])
    token = forge(header={"alg": "ES256"}, sign=lambda message: bytes(signers["P-256"].sign(message, ECDSA(SHA256()))))
    assert refusal(token, ring) == "signature: does not verify"


@pytest.mark.parametrize(
    "header", [{"alg": "top-secret-alg"}, {"alg": "HS256", "kid": "top-secret-kid"}, b"top-secret-"]
)
def test_refusals_repeat_nothing_of_the_token(header: Any) -> None:
    token = forge({"sub": "top-secret-user"}, header, hs256(OTHER_SECRET))
    with pytest.raises(RefusedError) as caught:
        open_token(token, RING)
    shown = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value)
    assert "top-secret" not in shown
    assert not any(part in shown for part in token.split("."))
    assert SECRET not in shown
