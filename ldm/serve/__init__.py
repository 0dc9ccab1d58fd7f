"""`python -m ldm.serve`: a local page and an HTTP API that generate pictures with any bundle.

One process answers requests and imports no torch; one other process has the networks. What a request names is
an id, never a path.
"""
