"""Where records lie: by tenant and partition, with keys that every service takes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import ids
from resilience.placement import partition_key, tenant_in, tenant_of

RESPONSE = ids.new_response_id(ids.new_partition())


@given(st.text(st.characters(codec="utf-8")))
def test_any_principal_has_a_key_safe_tenant(principal: str) -> None:
    key = partition_key(tenant_of(principal), RESPONSE)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
    assert tenant_in(key) == tenant_of(principal)
    assert tenant_of(principal) == tenant_of(principal)


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("", " "), ("a", "A"), ("a-b", "a"), ("é", "e\u0301")])
def test_two_principals_never_share_a_tenant(one: str, other: str) -> None:
    assert tenant_of(one) != tenant_of(other)


def test_a_chain_shares_its_partition() -> None:
    successor = ids.new_response_id(ids.partition_of(RESPONSE))
    assert partition_key("t", successor) == partition_key("t", RESPONSE)
    assert partition_key("t", ids.new_response_id(ids.new_partition())) != partition_key("t", RESPONSE)
