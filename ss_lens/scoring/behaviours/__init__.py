"""How answers of a behaviour are scored: by how they begin, and by what they say."""
