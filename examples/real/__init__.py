"""A real model: SmolLM2-135M-Instruct with two adapters trained on it, served and compared with PEFT."""
