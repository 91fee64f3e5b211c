"""Where and what to steer: directions, plane, and the sites to act at."""
