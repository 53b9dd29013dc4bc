"""M-steps: maps that do not decrease the expected log-joint plus the log-prior."""
