"""The model card of an exported pipeline: how to draw with it, and what differs from the bundle."""

from collections.abc import Sequence

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---
# A latent diffusion model trained with ldm

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("<this folder>")
pipeline("a red apple", num_inference_steps={steps}, guidance_scale={guidance:g}).images[0]
```

Pictures have {size} x {size} pixels. It has no safety checker. `ldm.json` keeps what diffusers has no place
for: `python -m ldm.export from=<this folder>` makes the bundle again. The licence is that of the data and
weights that it was trained from; write it here before you publish it.
"""


def model_card(*, size: int, steps: int, guidance: float, notes: Sequence[str]) -> str:
    """README.md of an exported folder.

    Args:
        size: side of a picture in pixels.
        steps: sampling steps of the bundle.
        guidance: its guidance scale.
        notes: what was changed or left out, in sentences.
    """
    listed = "".join(f"\n- {note[0].upper()}{note[1:]}." for note in notes)
    differences = f"\n## Unlike the bundle\n{listed}\n" if notes else ""
    return CARD.format(steps=steps, guidance=guidance, size=size) + differences
