"""Rates and bounds of what comes in: what can be no rate is called by its name."""

from __future__ import annotations

from typing import Any

import pytest

from broker.app import create_app
from broker.core.pace import Rates
from broker.settings import SettingsError, load

pytestmark = pytest.mark.anyio

RATES = ["limits.command_rate", "limits.publish_rate", "api.keys[0].publish_rate", "topics[0].publish_rate"]


def tree(name: str, value: object) -> dict[str, Any]:
    section, _, leaf = name.rpartition(".")
    lists: dict[str, dict[str, Any]] = {
        "api.keys[0]": {"api": {"keys": [{"key": "k", "name": "n", leaf: value}]}},
        "topics[0]": {"topics": [{"name": "n", "match": ["n"], leaf: value}]},
    }
    return lists.get(section, {section: {leaf: value}})


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [0, -1, "many", True, float("nan"), [1]])
def test_what_is_no_rate_is_called_by_its_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as refused:
        load(None, {}, tree(name, value))
    (mistake,) = str(refused.value).splitlines()
    assert mistake.startswith(f"flag {name}: ")
    assert "give a number above 0" in mistake


@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_what_is_no_number_of_publications_is_called_by_its_name(value: object) -> None:
    with pytest.raises(SettingsError) as refused:
        load(None, {}, tree("limits.publishes_in_flight", value))
    assert str(refused.value).startswith("flag limits.publishes_in_flight: ")


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [0.01, 1, 1e6])
def test_rates_may_be_small_and_large(name: str, value: float) -> None:
    load(None, {}, tree(name, value))


async def test_clients_without_limits_are_held_to_nothing() -> None:
    def rates(**limits: float) -> Rates | None:
        return create_app(
            load(None, {}, {"limits": limits}), nats_url="nats://127.0.0.1:1", name="n"
        ).node.options.rates

    assert rates() is None
    assert rates(command_rate=5) == Rates(5, None)
    assert rates(publish_rate=5) == Rates(None, 5)
