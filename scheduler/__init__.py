"""Decides which job goes to which worker, and when: pure policies, and one process that feeds and obeys them."""
