"""Recipe nodes: one frozen pydantic class for each method; YAML in, one clear line out."""
