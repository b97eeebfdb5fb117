"""A run's report: figures and tables with words, as one HTML page, CSV and LaTeX. Knows nothing of models."""
