"""A model that one can run: where its weights come from, its chat template, its sites."""
