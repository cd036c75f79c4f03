"""Apps to serve with `RESPONSES_AGENT=samples.NAME:app make start`, each about one thing."""
