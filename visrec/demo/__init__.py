"""The sample gallery: painted pictures, and buyers whose taste is known."""
