"""Stands for the webhook relay."""

from life import live

live("relay")
