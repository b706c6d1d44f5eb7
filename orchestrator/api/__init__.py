"""The doors: HTTP in, HTTP out; status codes are known here alone."""
