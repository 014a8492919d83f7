"""The membership family in plain PyTorch."""
