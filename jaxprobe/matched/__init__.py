"""The matched protocol of `delta_pct`: units chosen on other facts, beside control sets, with a verdict."""
