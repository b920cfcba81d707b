"""What is held to float64 on the card, one file per kind of kernel."""
