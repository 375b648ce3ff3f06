"""Universality: a finite recurrent network, in exact arithmetic, that does what a Turing machine does."""

from throughtime.universal.machine import Configuration, TuringMachine
from throughtime.universal.machines import binary_increment, busy_beaver, palindromes
from throughtime.universal.network import TuringNetwork, from_turing_machine

__all__ = [
    "Configuration",
    "TuringMachine",
    "TuringNetwork",
    "binary_increment",
    "busy_beaver",
    "from_turing_machine",
    "palindromes",
]
