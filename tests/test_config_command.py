"""`broker config` says whether the settings are sound, what may be set, and what is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.app import check
from broker.config_command import json_schema, run_config
from broker.settings import load

HMAC = "0123456789abcdef0123456789abcdef"


def test_check_says_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_config("check", None, {}, {}, inspect=check) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_check_says_one_line_per_mistake_and_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_config(
            "check", None, {"BROKER_HTTP__PORT": "x", "BROKER_X__Y": ""}, {"log": {"level": "loud"}}, inspect=check
        )
        == 2
    )

    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split(":")[0] for line in said.err.splitlines()] == [
        "BROKER_X__Y",
        "BROKER_HTTP__PORT",
        "flag log.level",
    ]


def test_check_says_what_a_node_would_refuse_all_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no key at all")
    mangled = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    private_set = json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": "", "y": ""}]})
    file = tmp_path / "broker.json"
    tree = {
        "http": {"port": -1},
        "auth": {"hmac_secret": HMAC, "algorithms": ["ES256"]},
        "api": {"key": "twice", "keys": [{"name": "a", "key": "once"}, {"name": "b", "key": "twice"}]},
    }
    file.write_text(json.dumps(tree))

    keys = json.dumps([str(garbage), mangled, private_set])
    assert run_config("check", file, {"BROKER_AUTH__PUBLIC_KEYS": keys}, {}, inspect=check) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"{file}: http.port: -1 is not a port; give a number from 0 to 65535",
        f"{file}: api.keys[1].key: is also api.key; give each its own",
        f"{file}: auth.hmac_secret: it can verify HS256, HS384, HS512, none of which is allowed for it",
        "BROKER_AUTH__PUBLIC_KEYS: [0]: the file holds neither PEM nor a JWK or JWK set",
        "BROKER_AUTH__PUBLIC_KEYS: [1]: PEM text that holds no public key or certificate that can be read",
        "BROKER_AUTH__PUBLIC_KEYS: [2]: keys[0]: a EC key whose members are missing, malformed or not supported",
    ]


def test_show_prints_what_is_in_force_without_secrets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[http]\nport = 1\n[api]\nkeys = [{name = "a", key = "hidden1"}]\n[log]\nformat = "json"')
    environ = {
        "BROKER_HTTP__PORT": "2",
        "BROKER_AUTH__HMAC_SECRET": HMAC,
        "BROKER_NATS__URL": "nats://user:hidden2@a:4222,nats://hidden3@b",
    }

    assert run_config("show", file, environ, {}, inspect=check) == 0

    said = capsys.readouterr().out
    shown = json.loads(said)
    assert "hidden" not in said
    assert HMAC not in said
    assert (shown["http"]["port"], shown["log"]) == (2, {"level": "info", "format": "json"})
    assert shown["auth"]["hmac_secret"] == shown["api"]["keys"][0]["key"] == "********"
    assert shown["nats"]["url"] == "nats://user:********@a:4222,nats://********@b"
    assert shown["topics"][0]["match"] == [">"]


def test_what_is_shown_cannot_be_taken_for_the_secrets_themselves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    environ = {"BROKER_AUTH__HMAC_SECRET": HMAC, "BROKER_NATS__URL": "nats://user:p@a"}
    run_config("show", None, environ, {}, inspect=check)
    file = tmp_path / "shown.json"
    file.write_text(capsys.readouterr().out)

    assert run_config("check", file, {}, {}, inspect=check) == 2
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == ["nats.url", "auth.hmac_secret"]


def test_show_says_mistakes_rather_than_half_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_config("show", None, {"BROKER_HTTP__PORT": "x"}, {}, inspect=check) == 2
    assert capsys.readouterr().out == ""


def test_schema_is_printed_whatever_the_settings_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_config("schema", Path("/no/such/file"), {"BROKER_X__Y": ""}, {}, inspect=check) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for inside in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from subschemas(inside)


def test_the_schema_describes_every_setting_in_one_line() -> None:
    for name, definition in json_schema()["$defs"].items():
        for setting, schema in definition.get("properties", {}).items():
            assert "\n" not in schema.get("description", "\n"), f"{name}.{setting}"


def test_the_schema_refuses_unknown_names_and_nulls_as_loading_does() -> None:
    schema = json_schema()

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert all(one.get("additionalProperties") is False for one in subschemas(schema) if one.get("type") == "object")
    assert not any(one.get("type") == "null" for one in subschemas(schema))
    assert "null" not in json.dumps(schema)


def test_the_schema_refers_only_to_what_it_has() -> None:
    schema = json_schema()
    references = {one["$ref"] for one in subschemas(schema) if "$ref" in one}

    assert {reference.removeprefix("#/$defs/") for reference in references} <= set(schema["$defs"])


def test_the_schema_has_bounds_and_choices() -> None:
    definitions = json_schema()["$defs"]

    port = definitions["Http"]["properties"]["port"]
    assert (port["type"], port["minimum"], port["maximum"], port["default"]) == ("integer", 0, 65_535, 8000)
    assert definitions["Nats"]["properties"]["replicas"]["enum"] == [1, 3, 5]
    assert definitions["PolicyEntry"]["required"] == ["name", "match"]
    assert definitions["Auth"]["properties"]["hmac_secret"]["writeOnly"] is True


def test_the_schema_promises_no_way_to_nats_that_there_is_not() -> None:
    described = json_schema()["$defs"]["Nats"]["properties"]["url"]["description"]

    assert "tls://" in described
    assert "ws" not in described


def test_the_defaults_in_the_schema_can_be_loaded() -> None:
    defaults = {name: section["default"] for name, section in json_schema()["properties"].items()}

    assert load(None, {}, defaults) == load(None, {}, {})
