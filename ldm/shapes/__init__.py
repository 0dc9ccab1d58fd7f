"""A world of shapes whose pictures can be read exactly: scenes, sentences about them, and the reader."""
