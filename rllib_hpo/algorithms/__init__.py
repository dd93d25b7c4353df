"""Learning algorithms, a file each: networks, randomness and update (`base.Method`). Pure torch.

`registry` finds them by name, and knows their settings without importing torch.
"""
