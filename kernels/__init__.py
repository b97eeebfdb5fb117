"""Mamba's selective scan, derivatives as products of it and of GPT-2's block, and eigenvalues on a GPU.

Knows no models.
"""
