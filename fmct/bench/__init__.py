"""How fast is it here, and how much memory does it take: each figure beside its floor and its target."""
