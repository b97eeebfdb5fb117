"""The selective scan: the recurrence at the heart of Mamba. Knows nothing of models."""
