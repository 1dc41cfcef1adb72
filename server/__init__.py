"""Notification server: one POST becomes an inbox entry, a live push on every open screen, and a mail for
those away."""

__version__ = "0.1.0"
