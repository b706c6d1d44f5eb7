"""PDF bytes become chunks, in a process of their own."""
