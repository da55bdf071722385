"""The network: its features, its integer inference on every engine, its weights."""

from __future__ import annotations
