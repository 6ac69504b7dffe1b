"""Pictures to feature vectors: decoding, pretrained backbones, the features directory, clusters."""
