"""Parts of `ldm.sample`: reads prompts and source pictures, generates in batches, writes PNGs and records."""
