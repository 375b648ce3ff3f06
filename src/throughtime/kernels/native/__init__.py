"""The native engine: C++ compiled for several instruction sets, one of them chosen when the program runs."""
