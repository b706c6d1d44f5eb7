"""Plans memory, launches a real engine, waits until it is ready, and stops it whole."""
