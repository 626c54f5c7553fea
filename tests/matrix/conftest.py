"""Servers for the compositions that need one."""

from tests.contract.conftest import servers

__all__ = ["servers"]
