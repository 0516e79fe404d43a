"""One scan brought onto another's grid, and how well that went."""
