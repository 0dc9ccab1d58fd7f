"""Commands that turn pictures and captions into shards, one a file, and the rules that they share."""
