"""What an audit measures: one pass of each model over each set, the attacks on it, intervals, probes."""
