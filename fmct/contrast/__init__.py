"""Intravenous contrast in CT: who has it, since when, and what a header says of it."""
