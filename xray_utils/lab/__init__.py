"""The laboratory: one experiment a module, for notebooks 6 and 7."""
