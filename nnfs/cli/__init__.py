"""The command line: arguments, tables, progress. It talks to a live mount over its control socket."""

from __future__ import annotations
