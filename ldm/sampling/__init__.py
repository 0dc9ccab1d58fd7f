"""What `ldm.sample` does between its config and its files: prompts, pictures to start from, records."""
