"""Every role a model plays: a prompt as a text file, a pydantic reply, one fill."""
