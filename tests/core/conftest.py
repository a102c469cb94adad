from __future__ import annotations

from hypothesis import HealthCheck, settings

# a machine that is busy with other tests, or builds hypothesis's table of characters first, is no failure
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
