"""Memory and time of a run by arithmetic, before anything is loaded. Imports no torch."""
