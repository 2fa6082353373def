"""Redis: the mirror of revocations and the shared counters of failed log-ins. Loaded only where one is configured."""
