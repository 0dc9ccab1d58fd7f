"""Commands that turn pictures and captions into shards: one data set a file."""
