"""The paged KV cache: blocks, what they hold, and who may begin with them."""
