"""What vLLM's CPU build needs to be verl's rollout."""
