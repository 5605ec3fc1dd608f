"""How people are told. What they are told is decided elsewhere."""
