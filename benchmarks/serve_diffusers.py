"""diffusers' pipeline behind the route of `ldm.serve`, as its users write it: one request at a time.

python -m benchmarks.serve_diffusers FOLDER PORT [STEPS]
"""

import base64
import io
import sys
import threading
from typing import Any

import torch
import uvicorn
from diffusers import StableDiffusionPipeline
from fastapi import FastAPI
from pydantic import BaseModel


class Asked(BaseModel):
    """What the benchmark sends."""

    prompt: str
    seed: int
    quality: str = ""


def application(folder: str, *, steps: int, scale: float = 2.0) -> FastAPI:
    """The application of a folder that `ldm.export to=diffusers` has written."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/images/generations")
    def generations(asked: Asked) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(asked.seed)
        with lock:  # a pipeline is not made for two calls at once
            made = pipeline(
                asked.prompt, num_inference_steps=steps, guidance_scale=scale, generator=generator
            )
        buffer = io.BytesIO()
        made.images[0].save(buffer, "PNG")
        return {"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}

    return app


if __name__ == "__main__":
    folder, port, *rest = sys.argv[1:]
    served = application(folder, steps=int(rest[0]) if rest else 12)
    uvicorn.run(served, port=int(port), log_level="warning")
