"""A checkpoint in this process: as a `Chat`, and behind an OpenAI-compatible server. Not the core: it loads torch."""
