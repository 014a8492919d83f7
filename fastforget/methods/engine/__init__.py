"""What every method's loop is made of: counted steps, batches drawn up front, terms that push and hold, and how norms behave meanwhile."""
