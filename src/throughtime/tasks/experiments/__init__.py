"""The classic experiments: long-range dependencies made by generators, and images read pixel by pixel."""
