"""What frozen features are worth, beside random initialisation and intensities alone."""
