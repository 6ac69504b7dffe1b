"""Training examples: triples by guideline, negatives, and the softmax candidates of a step."""
