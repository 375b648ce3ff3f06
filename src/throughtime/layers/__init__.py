"""Noise, readouts and losses: what stands around recurrent layers."""
