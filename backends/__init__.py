"""Backends: one file for each array library, imported only when it is asked for."""
