"""Fixtures of the tests of data between requests and store."""

from __future__ import annotations

from tests.workers.conftest import gate

__all__ = ["gate"]
