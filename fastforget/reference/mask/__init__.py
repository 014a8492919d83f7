"""The mask family in plain PyTorch."""
