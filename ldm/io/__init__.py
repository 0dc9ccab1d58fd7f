"""Files: what is written appears whole and goes through no link, what others wrote is read within limits."""
