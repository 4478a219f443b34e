"""Ablation studies: a YAML grid over a recipe, run seed by seed, resumable, with a status page and a report."""
