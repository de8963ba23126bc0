"""Backends by role. `light` works on a CPU without downloads; the paper's own systems plug into the same protocols."""
