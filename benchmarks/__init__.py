"""The suites that `dgents bench` runs."""
