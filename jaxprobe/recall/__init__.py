"""Whether facts are still recalled once the delta-sensitive units are perturbed."""
