"""The parts of the main job: what it does, a scan of all angles with controls, scored answers, a
verdict, and the folder that holds them."""
