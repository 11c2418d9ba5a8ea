"""Federated training: the task that trains alone, at many sites whose data stays where it is. See `docs/federation.md`."""
