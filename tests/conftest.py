"""What every test may rely on: no network, one thread, and random numbers that do not depend on the order of tests."""

from __future__ import annotations

import os
import random
import sys
import zlib

# Read when the libraries are first imported, so set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

pytest.register_assert_rewrite("stores.contract")  # no test module, and its assertions are to explain themselves

settings.register_profile(
    "fedrag",
    deadline=None,  # a loaded machine is not a defect
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
settings.load_profile("fedrag")


DEPLOYMENTS = ("test_deployed.py", "test_deployed_faults.py", "test_law_7_one_task_one_model.py")


class OneDeploymentAtATime(LoadScopeScheduling):
    """A deployment is many processes with deadlines, so one worker has all tests of them; others go where room is.

    xdist's own groups name a test anew after it was collected, which pytest 9 no longer lets it.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "deployments" if nodeid.partition("::")[0].endswith(DEPLOYMENTS) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneDeploymentAtATime:
    return OneDeploymentAtATime(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    _seed(str(fixturedef.argname))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _seed(item.nodeid)


def _seed(name: str) -> None:
    """Seed by name: were the seed the same everywhere, a fixture's weights and a test's inputs would be equal."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    for library in ("numpy", "torch"):
        if module := sys.modules.get(library):
            (module.random.seed if library == "numpy" else module.manual_seed)(seed)
