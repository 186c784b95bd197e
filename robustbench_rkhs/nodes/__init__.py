"""Recipe nodes: one frozen pydantic class per method, parsed from YAML, with one-line error messages."""
