"""Measurements of the running app, from outside: over HTTP, by its processes and its storage."""
