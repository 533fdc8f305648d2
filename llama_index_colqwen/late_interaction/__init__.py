"""Multi-vectors -> scores."""
