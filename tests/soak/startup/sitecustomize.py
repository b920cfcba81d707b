"""Run by Python at the start of every process of a soaked stack, which has this folder on its path."""

from tests.soak.hooks import install

install()
