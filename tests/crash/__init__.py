"""Crash tests: the daemon killed at a write, the power cut."""
