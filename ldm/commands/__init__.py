"""What the commands share: the answers they give, and options that are typed as `key=value`."""
