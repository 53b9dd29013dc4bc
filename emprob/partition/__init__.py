"""The log-partition function and its gradient, by structure: pure numerics, no NumPyro."""
