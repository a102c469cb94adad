"""The kinds of values that settings have: what each takes, and what is said when it is something else.

Every complaint here is a predicate that can follow the value found: "70000 *is not a port; give …*".
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, SecretStr, Strict
from pydantic_core import CoreSchema, core_schema

from broker.core.topic import parse_pattern, topic_problem

MASK = "********"
EMBEDDED = "embedded"

_NATS_SCHEMES = ("nats", "tls")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\*\.)?([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_HASH_OF_NOTHING = f"sha256:{hashlib.sha256().hexdigest()}"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
# up to the last @ before a comma or a space: a password that should have been percent-encoded is masked whole
_CREDENTIALS = re.compile(r"(?<=://)(?:([^\s,:@/]*):)?[^\s,]*@")


def mask_urls(text: str) -> str:
    """The same text without the passwords in its URLs. A user without a password is a token to NATS: masked too."""
    return _CREDENTIALS.sub(lambda found: f"{found[1]}:{MASK}@" if found[1] else f"{MASK}@", text)


@dataclass(frozen=True, slots=True)
class Wording:
    """Replaces whatever pydantic says about the annotated type."""

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _worded(handler(source), self.text)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`, both included. `true` and `3.0` are none."""

    low: int
    high: int
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.int_schema(strict=True, ge=self.low, le=self.high)
        return _worded(schema, f"is not {self.what}; give a number from {self.low} to {self.high}")


@dataclass(frozen=True, slots=True)
class Above:
    """A finite number above 0, at most `high`."""

    high: float
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.float_schema(strict=True, gt=0, le=self.high, allow_inf_nan=False)
        return _worded(schema, f"is not {self.what}; give a number above 0, at most {self.high:.10g}")


@dataclass(frozen=True, slots=True)
class Between:
    """A finite number from 0 to `high`, both included."""

    high: float
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.float_schema(strict=True, ge=0, le=self.high, allow_inf_nan=False)
        return _worded(schema, f"is not {self.what}; give a number from 0 to {self.high:.10g}")


def _worded(schema: CoreSchema, text: str) -> CoreSchema:
    return core_schema.custom_error_schema(schema, custom_error_type="worded", custom_error_message=text)


def _readable(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"cannot be read as a file: {error.strerror}") from None
    except ValueError:
        raise ValueError("is not the name of a file") from None
    return path


def _secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text:
        raise ValueError("is empty; leave it out or give the secret")
    if text == MASK:
        raise ValueError("is the mask that `broker config --show` prints; give the secret itself")
    return secret


def _header_safe(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("cannot be sent in a header; give printable ASCII without spaces")
    return secret


def _key_or_hash(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if text.startswith("sha256:") and re.fullmatch(r"sha256:[0-9a-f]{64}", text) is None:
        raise ValueError("is not a key's hash; after sha256: give 64 lower-case hexadecimal digits")
    if text == _HASH_OF_NOTHING:
        raise ValueError("is the hash of an empty key; give that of the key")
    return secret


def _public_key(text: str) -> str:
    """Only what can be told without knowing the algorithms; `auth` reads the keys. Never quotes the value."""
    form = text.strip()
    if "PRIVATE KEY" in form:
        raise ValueError("is a private key, which no broker should have; give the public key")
    if form.startswith("-----BEGIN"):
        return text
    if not form.startswith("{"):
        _readable(Path(text))
        return text
    try:
        key = json.loads(form)
    except (ValueError, RecursionError):
        raise ValueError("begins like a JWK but is not JSON; give a PEM text, a JWK or the path of a file") from None
    members = key.get("keys", [key])
    if not isinstance(members, list) or not all(isinstance(jwk, dict) and "kty" in jwk for jwk in members):
        raise ValueError("is neither a JWK nor a JWK set: it has no kty")
    if any("d" in jwk or jwk["kty"] == "oct" for jwk in members):
        raise ValueError("holds a private or symmetric key; give public keys only")
    return text


def _origin(text: str) -> str:
    origin = text.lower()
    if origin == "*":
        return origin
    if _ORIGIN.fullmatch(origin) is None:
        raise ValueError("is not an origin; give one like https://app.example.com, https://*.example.com or *")
    # browsers never name the default port, so with it no request would match
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], " "))


def _nats_url(text: str) -> str:
    servers = [server.strip() for server in text.split(",")]
    if servers == [EMBEDDED]:
        return EMBEDDED
    for position, server in enumerate(servers, 1):
        problem = _server_problem(server)
        if problem is not None:
            # the entry itself stays unsaid, it may hold a password
            where = f"at entry {position} of {len(servers)}" if len(servers) > 1 else "here"
            raise ValueError(
                f"is not what NATS can be reached by: {where}, {problem}; "
                f"give nats://host:4222 or tls://host:4222, several with commas between, or embedded"
            )
    return ",".join(servers)


def _server_problem(server: str) -> str | None:
    if server == EMBEDDED:
        return "embedded stands beside others"
    if MASK in server:
        return "the password is the mask that `broker config --show` prints"
    try:
        url = urlsplit(server)
        port = url.port
    except ValueError:
        return "host or port is malformed"
    if url.scheme not in _NATS_SCHEMES:
        return "there is no scheme that NATS knows"
    if not url.hostname or port == 0 or re.search(r"\s", server):
        return "host or port is malformed"
    if url.path not in ("", "/") or url.query or url.fragment:
        return "something follows the port"
    return None


def _network(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            raise ValueError("is neither an address nor a network; give one like 192.0.2.7 or 10.0.0.0/8") from None
        raise ValueError(f"has bits set beyond its prefix; write {network}") from None
    return text


def _http_url(text: str) -> str:
    try:
        url = urlsplit(text)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        sound = False
    if not sound or re.search(r"\s", text):
        raise ValueError("is not a URL; give one that begins with http:// or https://")
    return text


def _replicas(number: int) -> int:
    if number not in (1, 3, 5):
        raise ValueError("is no number of replicas; give 1, 3 or 5")
    return number


def _pattern(text: str) -> str:
    try:
        parse_pattern(text)
    except ValueError as error:
        raise ValueError(f"is not a topic pattern: {error}") from None
    return text


def _personal_topic(text: str) -> str:
    if not text:
        return text
    if "{sub}" not in text:
        raise ValueError("names the same topic for everybody; put {sub} where the user's name belongs")
    problem = topic_problem(text.replace("{sub}", "user"))
    if problem is not None:
        raise ValueError(f"is not a topic: {problem}")
    return text


def _matching(expression: str, wording: str) -> AfterValidator:
    compiled = re.compile(expression)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(wording)
        return text

    return AfterValidator(check)


_DAY = 86_400
_GIB = 1_073_741_824

Switch = Annotated[bool, Strict(), Wording("is neither true nor false")]
Text = Annotated[str, _matching(r"(?s).+", "is empty; leave it out or give a text")]
JsonPointer = Annotated[
    str,
    _matching(
        r"(?s)(/([^~/]|~[01])*)+", "is no JSON pointer (RFC 6901) to a member; give one like /symbol, or leave it out"
    ),
]
Host = Annotated[str, _matching(r"[^\s/,]+", "is not a host; give a name or an address, like 0.0.0.0 or ::1")]
Port = Annotated[int, Whole(0, 65_535, "a port")]
Bytes = Annotated[int, Whole(1, 64 * _GIB, "a number of bytes")]
Count = Annotated[int, Whole(1, 1_000_000_000, "a count")]
Seconds = Annotated[float, Above(_DAY, "a time in seconds")]
LongSeconds = Annotated[float, Above(3_660 * _DAY, "a time in seconds")]
Delay = Annotated[float, Between(_DAY, "a time in seconds")]
Rate = Annotated[float, Above(1_000_000_000, "a number per second")]
Replicas = Annotated[
    int,
    Strict(),
    Wording("is no number of replicas; give 1, 3 or 5"),
    AfterValidator(_replicas),
    Field(json_schema_extra={"enum": [1, 3, 5]}),
]
ReadableFile = Annotated[Path, AfterValidator(_readable)]
Directory = Annotated[Path, Wording("is not the path of a directory")]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
ApiSecret = Annotated[Secret, AfterValidator(_header_safe)]
KeyOrHash = Annotated[ApiSecret, AfterValidator(_key_or_hash)]
PublicKey = Annotated[str, AfterValidator(_public_key)]
Origin = Annotated[str, AfterValidator(_origin)]
NatsUrl = Annotated[str, AfterValidator(_nats_url)]
NetworkText = Annotated[str, AfterValidator(_network)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
PatternText = Annotated[str, AfterValidator(_pattern)]
PersonalTopic = Annotated[str, AfterValidator(_personal_topic)]
Prefix = Annotated[
    str,
    _matching(
        r"(?=.{1,64}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*",
        "cannot begin a NATS subject; give letters, digits, _ and -, with dots between, at most 64",
    ),
]
PolicyName = Annotated[
    str, _matching(r"[a-z0-9_-]{1,64}", "is not a policy's name; give a-z, 0-9, _ and -, at most 64 of them")
]
KeyName = Annotated[
    str, _matching(r"[A-Za-z0-9_.-]{1,64}", "is not a key's name; give letters, digits, _, . and -, at most 64 of them")
]
