"""Intervals, tests and accounting over facts, texts and relations. numpy and scipy alone."""
