"""Causal language models, for whoever reads their answers: where logits come from, what can't serve, and next-token answers by blocks."""
