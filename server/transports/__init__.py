"""Listening doors: one file each, which carries frames between a client and its session."""
