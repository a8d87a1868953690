"""The service: studies over HTTP, a queue of searches, and the pages of the dashboard; an optional extra."""
