"""The run folder as a public format: every name in it, layout version, what it remembers. Anywhere."""
