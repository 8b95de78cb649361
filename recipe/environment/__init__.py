"""What the recipe runs on: locks, wheels, device code, driver and GPU."""
