"""The two spines: a request's way and a document's way."""
