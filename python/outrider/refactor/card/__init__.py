"""The quality card: one JSON file, and Markdown and a picture that are made from nothing else."""
