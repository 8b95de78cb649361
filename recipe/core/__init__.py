"""Ground floor: standard library only (the progress bar excepted). Any package may import it."""
