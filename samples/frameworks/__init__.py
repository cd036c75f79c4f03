"""Agents of other frameworks behind this server; each needs the package of its framework."""
