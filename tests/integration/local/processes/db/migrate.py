"""Stands for the migration: connects to the database that it is given."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psycopg

with psycopg.connect(os.environ["LORAYARD_DATABASE_URL"].replace("+psycopg", "")) as connection:
    connection.execute("SELECT 1")
if os.environ.get("DIES") == "migrate":
    sys.exit("migrate: no bread in the house")
with Path(os.environ["DIARY"]).open("a") as diary:
    diary.write("migrate began\nmigrate ended\n")
