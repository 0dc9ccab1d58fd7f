"""Pictures of CLIP-GEN from the features of pictures."""
