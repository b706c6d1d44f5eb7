"""An engine without a model: vLLM's wire, scheduling and metrics, with step times from a formula."""
