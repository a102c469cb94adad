"""The settings of a node: one frozen tree, from flags, the environment and a file.

`load` makes it. Flags win over the environment, the environment over the file, the file over the defaults; a list is
taken whole from the first that has it.
"""

from broker.settings.loading import load
from broker.settings.mistakes import SettingsError
from broker.settings.rights import Api, Auth, KeyEntry, PolicyEntry
from broker.settings.sections import Drain, Http, Limits, Log, Nats, Ping, Telemetry
from broker.settings.tree import Settings, make_policies

__all__ = [
    "Api",
    "Auth",
    "Drain",
    "Http",
    "KeyEntry",
    "Limits",
    "Log",
    "Nats",
    "Ping",
    "PolicyEntry",
    "Settings",
    "SettingsError",
    "Telemetry",
    "load",
    "make_policies",
]
