"""Exit codes that mean something to the supervisor."""

# An invocation ran past its time limit (sysexits' "temporary failure": try again).
TIMEOUT_EXIT = 75
