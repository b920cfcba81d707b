"""Delivers the webhooks in the outbox, at least once each, until they are accepted or dead."""
