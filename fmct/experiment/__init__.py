"""Grids of fine-tuning runs: a cell each, one JSON a cell, tables with contrasts that were listed before."""
