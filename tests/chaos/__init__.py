"""Real processes on a real emulator, disturbed for as long as one likes: `python -m tests.chaos --help`.

`line` is the way from a host to its storage, with weather; `hosts` keeps the processes; `troubles` disturbs them;
`traffic` plays the clients and keeps what they were told; `judge` compares that with what is stored in the end.
"""
