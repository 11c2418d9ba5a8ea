"""Federated training: the same task at many sites, whose data stays where it is. See `docs/federation.md`."""
