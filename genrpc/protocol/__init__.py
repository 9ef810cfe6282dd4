"""The sans-I/O protocol."""
