"""Stands for the scheduler."""

from life import live

live("scheduler")
