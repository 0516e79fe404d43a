"""`fmct demo`: the whole main job on embedded real CT. A leaf: nothing imports it."""
