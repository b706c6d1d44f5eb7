"""Who may do what: API keys, what each may use up, and whose a collection is."""
