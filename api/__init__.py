"""HTTP in, HTTP out: the endpoints of the Responses API over the engine. No business rule lives here."""
