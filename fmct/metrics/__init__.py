"""Scores of arrays and their intervals: areas, proportions, calibration, overlap, lesions."""
