"""Append-blob logs, table rows, payloads, worker ledgers and queues over Azure Storage or an in-memory twin.

Knows no protocol: bytes, rows, leases, etags. Three layers, from the bottom: a driver (`storage.azure`,
`storage.memory`), the seam that counts calls and injects faults (`storage.seam`), and the nouns (`log`, `rows`,
`payloads`, `ledger`, `queues`). `storage.connection` puts them together.
"""
