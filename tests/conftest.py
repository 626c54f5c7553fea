"""What every test shares: each async test runs under asyncio and under trio."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure() -> None:
    """Take interrupts, also where the tests are run in the background of a shell, which ignores them.

    A child that inherits that can't be interrupted, and some tests do it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run on one worker more than there are cores: a third of the time of a test is spent on waiting."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run an async test (``@pytest.mark.anyio``) on both event loops."""
    return str(request.param)
