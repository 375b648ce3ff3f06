"""Cells of the user's own in the native engine: one step is traced, taken apart, and run by a program over units."""
