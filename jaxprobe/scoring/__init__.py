"""Texts scored by a model, plain and with an edit at one layer, within the memory there is."""
