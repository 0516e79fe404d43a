"""Scans drawn from formulas, for tests and examples."""
