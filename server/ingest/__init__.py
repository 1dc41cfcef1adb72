"""Publishing doors: one file each, which reads its dialect and calls the notifier."""
