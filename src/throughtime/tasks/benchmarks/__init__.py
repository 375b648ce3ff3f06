"""Ours against the others', both sides in one run: what `throughtime bench` measures."""
