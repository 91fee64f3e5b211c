"""How far judges agree with people, and where that is known."""
