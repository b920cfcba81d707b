"""Decides which job goes to which worker and when: pure policies, and a process that obeys them."""
