"""Mamba's selective scan, and derivatives as matrix products of it and of GPT-2's block. Knows no models."""
