"""Serving: the bank, the engine and the server."""
