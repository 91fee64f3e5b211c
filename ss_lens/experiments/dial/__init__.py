"""The dial of the main job: a scan of all angles with controls, scored answers, a verdict."""
