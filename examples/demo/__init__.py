"""The whole pipeline on one machine: every shipped adapter, several tenants, every answer checked."""
