"""What every test shares: each async test runs under asyncio and under trio."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run an async test (``@pytest.mark.anyio``) on both event loops."""
    return str(request.param)
