"""Fixtures that several files of tests share."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from optimsyn.base.environment import EMBEDDED_KEY, EMBEDDED_URL
from optimsyn.llm.embedded.server import close_shared_server
from tests.extend_helpers import cell, installed, written
from tests.stages_helpers import recipe, served

__all__ = ["cell", "installed", "interrupts_arrive", "no_server_stays", "recipe", "served", "written"]


# A busy machine draws slowly; no test depends on the clock.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True, scope="module")
def no_server_stays() -> Iterator[None]:
    """A file's tests may start this process's embedded server; the next file finds none, whichever it is."""
    with pytest.MonkeyPatch.context() as environment:
        # Set and deleted: of a variable that was never there, a patch would not know that it has to go again.
        for name in (EMBEDDED_URL, EMBEDDED_KEY):
            environment.setenv(name, "")
            environment.delenv(name)
        yield
        close_shared_server()


@pytest.fixture(autouse=True, scope="session")
def interrupts_arrive() -> None:
    """What a script starts in the background ignores SIGINT, and so would all that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
