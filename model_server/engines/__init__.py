"""What each engine is called with: plan in, command line and environment out."""
