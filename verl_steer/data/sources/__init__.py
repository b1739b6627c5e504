"""One small adapter for each published source."""
