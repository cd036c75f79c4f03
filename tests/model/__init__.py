"""A model of the protocol of `resilience`, small enough to go through every order of its steps."""
