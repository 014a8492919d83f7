"""Shadow models: which samples each one sees, their training, their answers as sums, the attacks that read those."""
