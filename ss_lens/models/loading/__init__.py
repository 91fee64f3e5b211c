"""What loading a model takes and leaves: its place, the device and dtype, its fingerprint."""
