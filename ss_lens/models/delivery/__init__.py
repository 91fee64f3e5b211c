"""How a pinned file comes from where it is published: from the Hub, or out of wheels."""
