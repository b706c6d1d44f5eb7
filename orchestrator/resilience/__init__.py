"""Mechanisms that hold the load; they know nothing of RAG, HTTP or Prometheus."""
