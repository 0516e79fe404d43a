"""Labels and scans of public collections, as their owners ship them."""
