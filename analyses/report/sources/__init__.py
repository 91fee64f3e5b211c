"""What a report can be of: a main job, a sweep, the tables of the paper."""
