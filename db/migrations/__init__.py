"""How the schema came to be; `db.migrate` walks through it."""
