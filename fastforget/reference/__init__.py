"""The meaning of every op, in plain PyTorch: what the kernels are tested against, and what runs where no kernel can."""
