"""The Responses wire: types, validation, ids, errors, server-sent events, event builders, and the fold of events to a
snapshot.

Pure: no I/O, no storage, no clock but one passed in.
"""
