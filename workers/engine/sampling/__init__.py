"""How a sequence's next token is chosen: parameters, rules on logits, the draw."""
