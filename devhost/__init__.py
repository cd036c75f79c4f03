"""A local Azure Functions host for Python apps: `python -m devhost`.

It drives the very `azure-functions-runtime` package that Azure runs on Python 3.13, in one process with the app, and
stands in for the platform around it: HTTP front, queue listener, timers, time limit, settings. See README.md for what
it imitates and what it leaves out.
"""
