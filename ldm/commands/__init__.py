"""Shared by all commands: help, error messages, and options that are typed as `key=value`."""
