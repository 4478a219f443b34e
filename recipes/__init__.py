"""The recipes: scripts to run as they are, and to copy. Installed as `hf_evidenceflow.recipes`."""
