"""What the settings take, from where, and what they come to."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.config_command import in_force
from broker.core.permissions import Access
from broker.core.policy import PolicyTable
from broker.settings import Auth, Http, Settings, SettingsError, load, make_policies
from broker.settings.loading import NOT_YET, SHAPE
from broker.settings.sources import variable

REFERENCE = Path(__file__).parents[1] / "docs" / "configuration.md"
SECRET = "0123456789abcdef0123456789abcdef"


def from_environment(**environ: str) -> Settings:
    return load(None, environ, {})


def from_json(directory: Path, tree: Any) -> Settings:
    file = directory / "broker.json"
    file.write_text(json.dumps(tree))
    return load(file, {}, {})


def names_of_settings() -> list[str]:
    """As the reference has them: `http.port`, `topics[].name`."""
    listed = {"api.keys[]": ("api", "keys", 0), "topics[]": ("topics", 0)}
    sections = {".".join(map(str, path[:1])): path[:1] for path in SHAPE.variables() if path != ("topics",)}
    return [f"{title}.{name}" for title, path in {**sections, **listed}.items() for name in SHAPE.names(path)]


def test_a_node_needs_no_settings() -> None:
    settings = load(None, {}, {})

    assert (settings.http.port, settings.nats.servers) == (8000, ("nats://127.0.0.1:4222",))
    assert settings == Settings()


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[http]\nport = 1\nhost = "file"\ninternal_port = 4\n[log]\nlevel = "debug"')

    settings = load(file, {"BROKER_HTTP__PORT": "2", "BROKER_HTTP__HOST": "environment"}, {"http": {"port": 3}})

    assert (settings.http.port, settings.http.host, settings.http.internal_port) == (3, "environment", 4)
    assert (settings.log.level, settings.log.format) == ("debug", "text")


def test_a_list_is_taken_whole_from_the_first_source_that_has_it(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[http]\nallowed_origins = ["https://a.example", "https://b.example"]')

    settings = load(file, {"BROKER_HTTP__ALLOWED_ORIGINS": '["https://c.example"]'}, {})

    assert settings.http.allowed_origins == ("https://c.example",)


def test_a_flag_that_is_none_was_not_given() -> None:
    settings = load(
        None, {"BROKER_HTTP__PORT": "2"}, {"http": {"port": None}, "nats": {"url": "embedded"}, "log": None}
    )

    assert (settings.http.port, settings.nats.embedded, settings.nats.servers) == (2, True, ())


def test_flags_are_left_as_they_were() -> None:
    flags = {"topics": [{"name": "a", "match": ["["], "publish_rate": 0}]}

    with pytest.raises(SettingsError):
        load(None, {}, flags)

    assert flags == {"topics": [{"name": "a", "match": ["["], "publish_rate": 0}]}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_the_environment_has_switches_as_words_or_digits(text: str, value: bool) -> None:  # noqa: FBT001
    assert from_environment(BROKER_AUTH__ANONYMOUS=text).auth.anonymous is value


def test_the_environment_has_numbers_as_digits_and_lists_as_json() -> None:
    settings = from_environment(
        BROKER_LIMITS__MAX_CONNECTIONS="10",
        BROKER_PING__INTERVAL_SECONDS="9.5",
        BROKER_TOPICS='[{"name": "a", "match": ["a.>"], "publish": "nobody"}]',
    )

    assert (settings.limits.max_connections, settings.ping.interval_seconds) == (10, 9.5)
    assert [policy.publish for policy in settings.topics] == [Access.NOBODY]


def test_a_secret_may_come_from_a_file_without_its_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "hmac").write_text(SECRET + "\r\n")
    (tmp_path / "keys").write_text('[{"key": "k", "name": "n"}]\n')

    settings = from_environment(
        BROKER_AUTH__HMAC_SECRET_FILE=str(tmp_path / "hmac"), BROKER_API__KEYS_FILE=str(tmp_path / "keys")
    )

    assert settings.auth.hmac_secret is not None
    assert settings.auth.hmac_secret.get_secret_value() == SECRET
    assert settings.api.keys[0].key.get_secret_value() == "k"


def test_a_name_that_ends_in_file_is_itself(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.write_text("S…")

    assert from_environment(BROKER_NATS__NKEY_FILE=str(seed)).nats.nkey_file == seed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_WORKER", "3"),
        ("BROKER_WORKER_SOCKET", "/run/s"),
        ("BROKER_SERVICE_HOST", "10.0.0.1"),
        ("BROKER_SERVICE_PORT_HTTP", "80"),
        ("BROKER_PORT", "tcp://10.0.0.1:80"),
        ("BROKER_NATS_PORT_4222_TCP", "tcp://10.0.0.1:4222"),
        ("BROKER_NATS_PORT_4222_TCP_ADDR", "10.0.0.1"),
        ("PATH", "/bin"),
    ],
)
def test_variables_of_our_own_processes_and_of_kubernetes_are_passed_over(name: str, value: str) -> None:
    assert load(None, {name: value}, {}) == Settings()


def test_settings_made_by_hand_do_not_look_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_HTTP__PORT", "1")
    monkeypatch.setenv("HTTP", '{"port": 1}')

    assert Settings().http.port == 8000


def test_settings_are_frozen_and_keep_secrets_from_print() -> None:
    settings = from_environment(BROKER_AUTH__HMAC_SECRET=SECRET, BROKER_API__KEY="dev")

    assert SECRET not in repr(settings)
    with pytest.raises(ValidationError):
        settings.http = Http()
    with pytest.raises(ValidationError) as refused:
        Auth(hmac_secret="tooshort", minimum_secret_bytes=9)  # type: ignore[arg-type]
    assert "tooshort" not in str(refused.value)


def test_an_api_key_has_one_digest_however_it_is_given(tmp_path: Path) -> None:
    hashed = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
    keys = [{"name": "plain", "key": "key"}, {"name": "hashed", "key": f"sha256:{hashed}"}]

    assert [from_json(tmp_path, {"api": {"keys": [key]}}).api.keys[0].digest() for key in keys] == [hashed, hashed]


def test_origins_are_compared_as_browsers_send_them(tmp_path: Path) -> None:
    origins = ["HTTPS://App.Example.com:443", "http://a.example:80", "https://a.example:80", "https://[::1]:8443", "*"]
    wanted = ("https://app.example.com", "http://a.example", "https://a.example:80", "https://[::1]:8443", "*")

    assert from_json(tmp_path, {"http": {"allowed_origins": origins}}).http.allowed_origins == wanted


def test_without_policies_there_is_one_for_all_topics(tmp_path: Path) -> None:
    for settings in (Settings(), from_json(tmp_path, {"topics": []})):
        (policy,) = make_policies(settings)
        assert (policy.name, policy.subscribe, policy.publish) == ("default", Access.GRANTED, Access.GRANTED)
        assert policy.match[0].matches("any.topic")


def test_policies_keep_their_order_and_inherit_the_message_limit(tmp_path: Path) -> None:
    entries = [
        {"name": "small", "match": ["a.*", "b:*"], "message_bytes": 10, "subscribe": "anyone"},
        {"name": "rest", "match": [">"]},
    ]
    table = PolicyTable(make_policies(from_json(tmp_path, {"topics": entries, "limits": {"message_bytes": 100}})))

    found = [table.resolve(topic) for topic in ("a.1", "b:1", "c")]

    assert [(policy.name, policy.message_bytes, policy.subscribe.value) for policy in found if policy is not None] == [
        ("small", 10, "anyone"),
        ("small", 10, "anyone"),
        ("rest", 100, "granted"),
    ]


def test_what_is_not_supported_yet_is_named_by_settings_that_exist() -> None:
    assert set(NOT_YET) <= set(names_of_settings())


def test_the_reference_has_every_setting_once_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z_.\[\]]+)` \| .*? \| (.*?) \| (.*) \|$", REFERENCE.read_text(), re.MULTILINE)
    documented = {name: default.strip("`") for name, default, _ in rows}

    assert sorted(name for name, _, _ in rows) == sorted(names_of_settings())
    assert {name for name, _, text in rows if text.startswith("**Not yet")} == set(NOT_YET)
    for name, default in documented.items():
        assert default == default_in_words(name), name


def default_in_words(name: str) -> str:
    if name == "topics[].message_bytes":
        return "limits.message_bytes"
    default = SHAPE.default(tuple(-1 if step == "[]" else step for step in name.replace("[]", ".[]").split(".")))
    words = {"PydanticUndefined": "must be given", "None": "none", "()": "[]", "": "empty"}
    text = f"{default:g}" if isinstance(default, float) else str(default)
    return words.get(text, text.lower() if isinstance(default, bool) else text)


def test_the_reference_has_the_same_example_in_both_forms(tmp_path: Path) -> None:
    text = REFERENCE.read_text().replace("/run/secrets/", f"{tmp_path}/").replace("/etc/broker/", f"{tmp_path}/")
    toml, as_json = (re.findall(rf"```{form}\n(.*?)```", text, re.DOTALL)[0] for form in ("toml", "json"))
    (tmp_path / "nats.creds").touch()
    (tmp_path / "issuer.pem").touch()

    assert tomllib.loads(toml) == json.loads(as_json)
    assert from_json(tmp_path, json.loads(as_json)).topics[0].name == "news"


VALID: dict[str, st.SearchStrategy[Any]] = {
    "http": st.fixed_dictionaries(
        {},
        optional={
            "port": st.integers(0, 65_535),
            "host": st.sampled_from(["::1", "localhost"]),
            "allowed_origins": st.lists(st.sampled_from(["*", "https://*.a.example", "app://x"])),
        },
    ),
    "nats": st.fixed_dictionaries({}, optional={"url": st.sampled_from(["embedded", "tls://a,tls://b:1"])}),
    "auth": st.fixed_dictionaries({}, optional={"anonymous": st.booleans(), "leeway_seconds": st.floats(0, 300)}),
    "ping": st.fixed_dictionaries({"interval_seconds": st.floats(9, 86_400)}),
    "topics": st.lists(
        st.fixed_dictionaries(
            {"name": st.from_regex(r"\A[a-z0-9_-]{1,64}\Z"), "match": st.just(["a.>"])},
            optional={"publish": st.sampled_from([str(access) for access in Access])},
        ),
        unique_by=lambda policy: str(policy["name"]),
    ),
}


@given(st.fixed_dictionaries({}, optional=VALID))
def test_what_is_shown_can_be_loaded_again(tree: Mapping[str, Any]) -> None:
    settings = load(None, {}, tree)
    environ = {}
    for section, names in in_force(settings).items():
        if isinstance(names, list):
            environ[variable((section,))] = json.dumps(names)
        else:
            for name, value in names.items():
                text = value if isinstance(value, str) else json.dumps(value)
                environ[variable((section, name))] = text

    assert load(None, environ, {}) == settings
    assert load(None, {}, in_force(settings)) == settings
