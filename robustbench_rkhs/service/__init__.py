"""A service for submissions: an upload form, an API, a queue, a worker that evaluates, and a page for each submission."""
