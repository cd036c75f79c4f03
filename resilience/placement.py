"""Where the records of a response lie: tenant + partition, so that a stranger's tenant does not even address them."""

import hashlib

from protocol import ids

_TENANT_LENGTH = 32
"""128 bits in hexadecimal: nobody finds a principal whose tenant is another's."""


def tenant_of(principal: str) -> str:
    """The stable, key-safe name of a principal."""
    return hashlib.sha256(principal.encode()).hexdigest()[:_TENANT_LENGTH]


def partition_key(tenant: str, response_id: str) -> str:
    """The table partition and blob prefix of a response's records; a whole chain shares it."""
    return f"{tenant}-{ids.partition_of(response_id)}"


def tenant_in(key: str) -> str:
    """The tenant inside a partition key."""
    return key.partition("-")[0]
