"""How a process starts, shares the work and stops."""
