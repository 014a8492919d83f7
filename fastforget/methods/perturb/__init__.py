"""Methods that move the weights by small steps until the forget data looks unseen: Forsaken, Lightweight."""
