"""Exact Jacobians beside sampled sensitivity: the sweeps, what is measured with them, how it is shown."""
