"""What is said about settings that cannot be used: one line each, all of them, and no secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from broker.settings import SettingsError, load, make_policies
from broker.settings.loading import NOT_YET
from broker.settings.mistakes import explain
from broker.settings.shape import Shape

SECRET = "hunter2hunter2hunter2hunter2hunter2"


def mistakes(file: Path | None = None, environ: Mapping[str, str] | None = None, **flags: Any) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load(file, environ or {}, flags)
    return list(refused.value.mistakes)


@pytest.fixture
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `tmp_path` the working directory, so that files can be called by short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("BROKER_HTTP__PORT", "70000", "70000 is not a port; give a number from 0 to 65535"),
        ("BROKER_HTTP__PORT", "", "'' is not a port; give a number from 0 to 65535"),
        ("BROKER_HTTP__PORT", "8" * 5000, f"'{'8' * 59}… is not a port; give a number from 0 to 65535"),
        ("BROKER_HTTP__PROT", "1", "unknown name; did you mean port?"),
        ("BROKER_HTPP__PORT", "1", "unknown section; did you mean http?"),
        ("BROKER_PORT", "1", "unknown name; did you mean BROKER_HTTP__PORT?"),
        ("BROKER_HTTP_PORT", "1", "unknown name; did you mean BROKER_HTTP__PORT?"),
        ("BROKER_CONFIG", "1", "unknown name; give BROKER_<SECTION>__<NAME>"),
        ("BROKER_LOG__X", "1", "unknown name; there are level, format"),
        (
            "BROKER_API__KEYS__0__KEY",
            "k",
            "unknown name; lists and objects are given as JSON, in BROKER_API__KEYS",
        ),
        ("BROKER_AUTH__ANONYMOUS", "yes", "'yes' is neither true nor false"),
        ("BROKER_LOG__LEVEL", "loud", "'loud' is none of debug, info, warning, error"),
        ("BROKER_TELEMETRY__SAMPLE_RATIO", "0.5", "is not supported by this version yet; leave it out"),
        (
            "BROKER_AUTH__LEEWAY_SECONDS",
            "nan",
            "'nan' is not a leeway in seconds; give a number from 0 to 300",
        ),
        (
            "BROKER_PING__INTERVAL_SECONDS",
            "1e999",
            "inf is not a time in seconds; give a number above 0, at most 86400",
        ),
        (
            "BROKER_HTTP__ALLOWED_ORIGINS",
            "https://a.example",
            (
                "is not JSON: Expecting value (at line 1, column 1); "
                "give a list in square brackets, texts in double quotes"
            ),
        ),
        ("BROKER_HTTP__ALLOWED_ORIGINS", "null", "null is no value; leave the name out to have its default"),
        ("BROKER_HTTP__ALLOWED_ORIGINS", '"*"', "'*' is not a list; give one in square brackets"),
        ("BROKER_HTTP__ALLOWED_ORIGINS", "[null]", ": [0]: null is not a text; give a string in quotes"),
        (
            "BROKER_HTTP__ALLOWED_ORIGINS",
            '["https://a.example/"]',
            (
                ": [0]: 'https://a.example/' is not an origin; give one like https://app.example.com, "
                "https://*.example.com or *"
            ),
        ),
        (
            "BROKER_AUTH__PERSONAL_TOPIC",
            "me",
            "'me' names the same topic for everybody; put {sub} where the user's name belongs",
        ),
        ("BROKER_AUTH__PERSONAL_TOPIC", "a..{sub}", "'a..{sub}' is not a topic: holds an empty token"),
        ("BROKER_TOPICS", "[{}]", ": [0].name: is missing and has no default; give it"),
        ("BROKER_TOPICS", '{"a": 1}', "a table is not a list; give one in square brackets"),
        ("BROKER_NATS__TLS_CA", "/no/such", "'/no/such' cannot be read as a file: No such file or directory"),
        ("BROKER_NATS__TOKEN_FILE", "/no/such", "cannot be read: No such file or directory"),
        ("BROKER_NATS__USER", "", "'' is empty; leave it out or give a text"),
    ],
)
def test_a_variable_is_called_by_its_name(name: str, value: str, complaint: str) -> None:
    between = "" if complaint.startswith(":") else ": "

    assert mistakes(environ={name: value})[0] == f"{name}{between}{complaint}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("htpp = 1", "htpp: unknown section; did you mean http?"),
        ("[http]\nprot = 1", "http.prot: unknown name; did you mean port?"),
        ("http = 1", "http: 1 is not a table; give names and values"),
        ("[http]\nport = true", "http.port: true is not a port; give a number from 0 to 65535"),
        ("[http]\nport = 1.0", "http.port: 1.0 is not a port; give a number from 0 to 65535"),
        ("[http]\nport = 2000-01-01", "http.port: a date is not a port; give a number from 0 to 65535"),
        (
            f"[http]\nport = 0x{'f' * 9000}",
            "http.port: so large a number is not a port; give a number from 0 to 65535",
        ),
        ("[log]\nlevel = 1", "log.level: 1 is none of debug, info, warning, error"),
        ("[http]\nhost = 1", "http.host: 1 is not a text; give a string in quotes"),
        ('[http]\n"po\\nrt" = 1', "http.'po\\nrt': unknown name; did you mean port?"),
        (
            '[[topics]]\nname="a"\nmatch=["a"]\n[[topics]]\nname="b"\nmatch=["b"]\nsubscribe="everyone"',
            "topics[1].subscribe: 'everyone' is none of nobody, granted, authenticated, anyone",
        ),
        (
            '[[topics]]\nname="a"\nmatch=["a.>.b"]',
            "topics[0].match[0]: 'a.>.b' is not a topic pattern: > may stand only at the end",
        ),
        ('[[topics]]\nname="a"\nmatch=[]', "topics[0].match: a list without entries; give at least one"),
        ("port = ", "is not TOML: Invalid value (at end of document)"),
        ("[http]\nport 1", "is not TOML: Expected '=' after a key in a key/value pair (at line 2, column 6)"),
    ],
)
def test_an_entry_of_a_file_is_called_by_file_and_path(in_directory: Path, text: str, complaint: str) -> None:
    Path("broker.toml").write_text(text)

    assert mistakes(Path("broker.toml")) == [f"broker.toml: {complaint}"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.toml", None, "cannot be read: No such file or directory"),
        ("broker.yaml", b"", "the suffix (yaml) says neither TOML nor JSON; name the file .toml or .json"),
        ("broker", b"", "the suffix (none) says neither TOML nor JSON; name the file .toml or .json"),
        ("broker.toml", b"#" * 5_000_000, "cannot be read: it has more than 4194304 bytes"),
        ("broker.toml", b"\xff", "cannot be read: it is not UTF-8 text"),
        (
            "broker.json",
            b"{\n  1",
            "is not JSON: Expecting property name enclosed in double quotes (at line 2, column 3)",
        ),
        ("broker.json", b"[]", "holds a list; give an object of sections"),
        ("broker.json", b"7", "holds one value; give an object of sections"),
        ("broker.json", b'{"log": {}, "log": {}}', "is not JSON: log stands twice in one object"),
        ("broker.json", b'{"http": {"port": NaN}}', "is not JSON: NaN is not a number that JSON has"),
        ("broker.json", b"[" * 100_000, "is not JSON: nested too deeply"),
        ("broker.toml", b"a=" + b"[" * 100_000, "is nested too deeply"),
        (
            "broker.json",
            b'{"http": {"port": ' + b"[" * 300 + b"]" * 300 + b"}}",
            "http.port: is nested too deeply to be a setting",
        ),
        (
            "broker.json",
            b'{"http": {"port": null}}',
            "http.port: null is no value; leave the name out to have its default",
        ),
        (
            "broker.json",
            b'{"http": {"host": "\\ud800"}}',
            "http.host: holds a character that has no UTF-8 form",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake_of_its_own(
    in_directory: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content)

    assert mistakes(Path(name))[0] == f"{name}: {complaint}"


def test_flags_are_called_as_users_type_them() -> None:
    assert mistakes(http={"port": "x", "host": "a b"}, drain={"rate_per_second": 0}) == [
        "--host: 'a b' is not a host; give a name or an address, like 0.0.0.0 or ::1",
        "--port: 'x' is not a port; give a number from 0 to 65535",
        "flag drain.rate_per_second: 0 is not a number per second; give a number above 0, at most 1000000000",
    ]


def test_names_that_do_not_fit_together_are_said_where_somebody_gave_one(in_directory: Path) -> None:
    Path("f").touch()
    environ = {
        "BROKER_HTTP__TLS_KEY": "f",
        "BROKER_HTTP__INTERNAL_PORT": "8000",
        "BROKER_PING__INTERVAL_SECONDS": "5",
        "BROKER_NATS__TOKEN": "t",
        "BROKER_NATS__NKEY_FILE": "f",
        "BROKER_NATS__PASSWORD": "p",
        "BROKER_AUTH__HMAC_SECRET": "ü" * 15,
    }

    assert mistakes(environ=environ) == [
        "BROKER_HTTP__TLS_KEY: is given without tls_cert; give both or neither",
        "BROKER_HTTP__INTERNAL_PORT: is the same as port; give another one",
        "BROKER_NATS__PASSWORD: is given without user; give both or neither",
        "BROKER_NATS__NKEY_FILE: nkey_file, token are all given; sign in to NATS one way only",
        "BROKER_AUTH__HMAC_SECRET: has 30 bytes, which can be guessed; give at least 32",
        "BROKER_PING__INTERVAL_SECONDS: pong_timeout_seconds (8) must be less than interval_seconds (5)",
    ]


def test_all_mistakes_are_named_even_those_that_others_hide(in_directory: Path) -> None:
    tree = {
        "http": {"port": -1, "host": "environment wins"},
        "log": [],
        "api": {"keys": [{"key": "k", "name": "a"}, {"key": "k", "name": "a"}, {"name": "a"}]},
        "topics": [
            {"name": "x", "match": [], "publish": "all"},
            {"name": "x", "match": ["b"], "message_bytes": 65_537, "publish_rate": 0},
        ],
    }
    Path("broker.json").write_text(json.dumps(tree))

    assert mistakes(Path("broker.json"), {"BROKER_HTTP__HOST": "a/b"}, log={"level": 3}) == [
        "broker.json: log: a list is not a table; give names and values",
        "BROKER_HTTP__HOST: 'a/b' is not a host; give a name or an address, like 0.0.0.0 or ::1",
        "broker.json: http.port: -1 is not a port; give a number from 0 to 65535",
        "broker.json: api.keys[2].key: is missing and has no default; give it",
        "broker.json: topics[0].match: a list without entries; give at least one",
        "broker.json: topics[0].publish: 'all' is none of nobody, granted, authenticated, anyone",
        "broker.json: topics[1].publish_rate: 0 is not a number per second; give a number above 0, at most 1000000000",
        "flag log.level: 3 is none of debug, info, warning, error",
        "broker.json: api.keys[1].name: 'a' already names another key; give each its own",
        "broker.json: api.keys[2].name: 'a' already names another key; give each its own",
        "broker.json: api.keys[1].key: is also another entry's key; give each its own",
        "broker.json: topics[1].name: 'x' already names another policy; give each its own",
        "broker.json: topics[1].message_bytes: 65537 is more than limits.message_bytes (65536) allows",
    ]


def test_a_variable_and_its_file_are_not_given_together(in_directory: Path) -> None:
    Path("key").write_text("k")

    assert mistakes(environ={"BROKER_API__KEY": "k", "BROKER_API__KEY_FILE": "key"}) == [
        "BROKER_API__KEY_FILE: BROKER_API__KEY is given too; give only one of them"
    ]


def test_the_key_with_all_rights_can_be_a_hash_and_is_no_other_entry_s_key() -> None:
    hashed = f"sha256:{hashlib.sha256(b'k').hexdigest()}"

    assert mistakes(api={"key": hashed, "keys": [{"key": "k", "name": "a"}]}) == [
        "flag api.keys[0].key: is also api.key; give each its own"
    ]
    assert mistakes(api={"key": "sha256:zz"}) == [
        "flag api.key: the value is not a key's hash; after sha256: give 64 lower-case hexadecimal digits"
    ]


def test_what_no_code_acts_on_yet_is_refused() -> None:
    for name in NOT_YET:
        leaf: dict[str, Any] = {name.split(".")[-1]: 5}
        lists: dict[str, dict[str, Any]] = {
            "api.keys[]": {"api": {"keys": [{"key": "k", "name": "n", **leaf}]}},
            "topics[]": {"topics": [{"name": "n", "match": ["n"], **leaf}]},
        }
        tree = lists.get(name.rpartition(".")[0], {name.split(".")[0]: leaf})

        assert mistakes(**tree) == [
            f"flag {name.replace('[]', '[0]')}: is not supported by this version yet; leave it out"
        ]


def test_the_default_of_what_is_not_supported_yet_is_taken() -> None:
    policy = {"name": "a", "match": ["a"], "durable": False, "overflow": "disconnect", "read": "subscribers"}

    assert (
        load(None, {}, {"topics": [policy], "http": {"trusted_proxies": []}, "nats": {"replicas": 1}}).topics[0].durable
        is False
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_NATS__URL", f"nats://user:{SECRET}@host/path"),
        ("BROKER_NATS__URL", f"nats://{SECRET}@host,b"),
        ("BROKER_NATS__URL", f"nats://user:a,{SECRET}@host"),
        ("BROKER_NATS__URL", f"user:{SECRET}@host"),
        ("BROKER_NATS__URL", f"http://user:{SECRET}/x@host"),
        ("BROKER_NATS__TOKEN", ""),
        ("BROKER_NATS__TOKEN", "********"),
        ("BROKER_API__KEY", f"{SECRET} {SECRET}"),
        ("BROKER_API__KEY", f"{SECRET}ü"),
        ("BROKER_API__KEYS", f'"{SECRET}"'),
        ("BROKER_API__KEYS", f'["{SECRET}"]'),
        ("BROKER_API__KEYS", f'[{{"key": "{SECRET}"]'),
        ("BROKER_API__KEYS", f'[{{"name": "a", "key": "sha256:{SECRET}"}}]'),
        ("BROKER_AUTH__HMAC_SECRET", SECRET[:31]),
        ("BROKER_AUTH__PUBLIC_KEYS", f'["-----BEGIN PRIVATE KEY-----{SECRET}"]'),
        ("BROKER_AUTH__PUBLIC_KEYS", f'["{{\\"kty\\": \\"oct\\", \\"k\\": \\"{SECRET}\\"}}"]'),
        ("BROKER_AUTH__PUBLIC_KEYS", f'["{{\\"kty\\": \\"{SECRET}"]'),
        ("BROKER_AUTH__PUBLIC_KEYS", '["{\\"keys\\": 1}"]'),
        ("BROKER_AUTH__PUBLIC_KEYS", f'["{SECRET}"]'),
    ],
)
def test_no_complaint_quotes_a_secret(name: str, value: str) -> None:
    said = mistakes(environ={name: value})

    assert not any(SECRET[:20] in line for line in said)
    assert all(line.startswith(name) for line in said)


def test_a_text_where_a_section_with_secrets_belongs_is_not_quoted(in_directory: Path) -> None:
    Path("broker.toml").write_text(f'api = "{SECRET}"\n[auth]\nhmac_secret = ["{SECRET}"]')

    assert mistakes(Path("broker.toml")) == [
        "broker.toml: api: the value is not a table; give names and values",
        "broker.toml: auth.hmac_secret: a list is not a text; give a string in quotes",
    ]


def test_a_kind_of_complaint_that_a_later_pydantic_brings_is_still_one_line() -> None:
    class Root(BaseModel):
        when: datetime
        key: SecretStr

    with pytest.raises(ValidationError) as refused:
        Root.model_validate({"when": "no\ntime", "key": 7})
    unknown, known = explain(refused.value, Shape(Root))

    assert unknown.text.startswith("'no\\ntime' cannot be used: Input should be a valid datetime")
    assert (known.paths, known.text) == ((("key",),), "7 is not a text; give a string in quotes")


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (
            {"overflow": "catch_up"},
            "overflow: catch_up reads from the stream, and there is none; make the policy durable, or choose another",
        ),
        (
            {"overflow": "catch_up", "durable": True, "recovery": "latest"},
            "overflow: catch_up brings every publication, and recovery = latest the newest only; give conflate instead",
        ),
        (
            {"overflow": "drop_oldest", "conflate_key": "/a"},
            "conflate_key: means nothing without overflow = conflate; leave it out, or conflate",
        ),
        (
            {"overflow": "conflate", "durable": True},
            (
                "overflow: conflate needs a conflate_key here: the history has every publication of a topic, so the "
                "newest does not stand for the others; give one, or recovery = latest"
            ),
        ),
        (
            {"overflow": "conflate", "conflate_key": "symbol"},
            "conflate_key: 'symbol' is no JSON pointer (RFC 6901) to a member; give one like /symbol, or leave it out",
        ),
        (
            {"overflow": "drop"},
            "overflow: 'drop' is none of disconnect, drop_oldest, drop_newest, conflate, catch_up",
        ),
    ],
)
def test_overflow_policies_that_can_not_work_are_refused(policy: dict[str, Any], complaint: str) -> None:
    entry = {"name": "a", "match": ["a"], **policy}
    assert mistakes(topics=[entry]) == [f"flag topics[0].{complaint}"]


@pytest.mark.parametrize(
    "policy",
    [
        {"overflow": "conflate"},
        {"overflow": "conflate", "conflate_key": "/a~1b/0"},
        {"overflow": "conflate", "durable": True, "recovery": "latest"},
        {"overflow": "conflate", "durable": True, "conflate_key": "/k"},
        {"overflow": "catch_up", "durable": True},
        {"overflow": "drop_oldest", "durable": True},
    ],
)
def test_overflow_policies_that_work_are_taken(policy: dict[str, Any]) -> None:
    (found,) = make_policies(load(None, {}, {"topics": [{"name": "a", "match": ["a"], **policy}]}))
    assert found.overflow == policy["overflow"]
    if policy.get("conflate_key") == "/a~1b/0":
        assert found.conflate_key == ("a/b", "0")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' has bits set beyond its prefix; write 10.0.0.0/8"),
        ("2001:db8::1/32", "'2001:db8::1/32' has bits set beyond its prefix; write 2001:db8::/32"),
        *(
            (entry, f"{entry!r} is neither an address nor a network; give one like 192.0.2.7 or 10.0.0.0/8")
            for entry in ("", "proxy", "10.0.0", "10.0.0.0/33", "10.0.0.1:80", "[::1]", "::1/129", "*")
        ),
    ],
)
def test_a_proxy_is_an_address_or_a_network(entry: str, text: str) -> None:
    assert mistakes(http={"trusted_proxies": ["192.0.2.7", entry, "::1"]}) == [f"flag http.trusted_proxies[1]: {text}"]


def test_proxies_that_are_trusted_are_taken() -> None:
    proxies = ("192.0.2.7", "10.0.0.0/8", "2001:db8::/32", "::1")

    assert load(None, {}, {"http": {"trusted_proxies": list(proxies)}}).http.trusted_proxies == proxies


def test_one_connections_queue_is_not_larger_than_all_together() -> None:
    assert mistakes(limits={"queue_bytes": 5000, "node_queue_bytes": 4999}) == [
        "flag limits.node_queue_bytes: 4999 is less than limits.queue_bytes (5000), which is for one"
    ]
