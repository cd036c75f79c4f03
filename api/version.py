"""Which server this is, for the `x-platform-server` header of every answer."""

VERSION = "0.1.0"
SERVER = f"resilient-responses/{VERSION}"
