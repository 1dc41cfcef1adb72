"""Doors for backends, one file each. Publishing doors read their dialect and call the notifier; others make tokens,
sign users out, and show mail and deliveries. `base`, `door`, `visits`, `keyed`, `paging`: what they have in common."""
