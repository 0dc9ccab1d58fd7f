"""Pictures of shapes: the sheet and the curves of the experiment `shapes`."""
