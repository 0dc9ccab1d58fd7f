"""Five numbers a network and a sampler, and each measure: they change only when what is computed changes.

`make golden` rewrites them; the reason goes into the commit message.
"""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.construct import construct
from ldm.diffusion import samplers, schedules
from ldm.metrics.distances import Cmmd, KernelDistance
from ldm.metrics.diversity import CaptionDiversity, InceptionScore, VendiScore
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.neighbours import DensityCoverage, Memorisation, PrecisionRecall
from ldm.metrics.picture_metric import Observed
from ldm.metrics.retrieval import PictureRecall

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
METHODS = {
    "ddpm": samplers.ddpm,
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "edm": partial(samplers.edm, churn=samplers.Churn(amount=2.0)),
    "dpmpp_2m": samplers.dpmpp_2m,
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde,
    "dpmpp_3m": samplers.dpmpp_3m,
    "unipc": samplers.unipc,
    "pndm": samplers.pndm,
    "lcm": samplers.lcm,
}


def spec(group: str, name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml"), resolve=True)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that no zero initialisation hides, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def unet() -> torch.Tensor:
    net = randomised(construct(spec("backbone", "unet_tiny")))
    return net(noise(2, 32, 8, 8), torch.tensor([10.0, 900.0]), noise(2, 32, 128))


def dit() -> torch.Tensor:
    net = randomised(construct(spec("backbone", "dit_tiny")))
    return net(noise(2, 32, 8, 8), torch.tensor([10.0, 900.0]), noise(2, 32, 128))


def vae() -> torch.Tensor:
    net = randomised(construct(spec("autoencoder", "kl_f4_tiny")))
    return net.decode(net.posterior(noise(2, 3, 64, 64)).mean)


def text_encoder() -> torch.Tensor:
    net = randomised(construct(spec("text_encoder", "clip_tiny")))
    tokens = torch.arange(64).view(2, 32) % 2000
    tokens[:, 9] = 2047
    return net(tokens).states


def sampled(name: str) -> torch.Tensor:
    """A loop over a denoiser that is a fixed function, on rectified flow."""
    draws = iter(noise(64, 1, 1, 1, 8).double())
    return METHODS[name](
        lambda x, t: torch.tanh(x) * (1 - t / 2),
        schedules.rectified_flow,
        noise(1, 1, 1, 8).double(),
        torch.linspace(1, 0, 11, dtype=torch.float64),
        noise=lambda x: next(draws),
    )


CASES = {"unet_tiny": unet, "dit_tiny": dit, "kl_f4_tiny": vae, "clip_tiny": text_encoder} | {
    name: (lambda name=name: sampled(name)) for name in METHODS
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_golden_file(name):
    with torch.no_grad():
        values = CASES[name]().double().flatten()
    found = [values.mean(), values.std(), values.abs().max(), values[0], values[-1]]
    found = [float(value) for value in found]
    path = GOLDEN / f"{name}.json"
    if os.environ.get("LDM_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found) + "\n")
    assert found == pytest.approx(json.loads(path.read_text()), rel=2e-4, abs=1e-5)


def measures() -> dict[str, float]:
    """Every measure of features alone, of 60 real pictures and 40 drawn of ten captions."""
    real, made = noise(100, 12).split([60, 40])
    sized = [kind(features="net", dims=12) for kind in (FrechetDistance, CaptionDiversity, VendiScore)]
    kinds = (Cmmd, DensityCoverage, PictureRecall, PrecisionRecall)
    settled = [
        KernelDistance(features="net", subsets=7, subset_size=20),
        InceptionScore(features="net", splits=4),
        Memorisation(features="net", quantile=0.3),
    ]
    found = {}
    for metric in [*sized, *settled, *(kind(features="net") for kind in kinds)]:
        for features, is_real in ((real, True), (1.2 * made, False)):
            rows = torch.arange(len(features))
            metric.update(Observed({"net": features}, rows=rows, captions=rows // 4), real=is_real)
        found |= {name: float(value) for name, value in metric.compute().items()}
    return found


def test_measures_of_fixed_features_are_those_of_the_golden_file():
    """To 1e-5: the features themselves are drawn in float32, whose last bit differs between processors."""
    found, path = measures(), GOLDEN / "measures.json"
    if os.environ.get("LDM_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=2) + "\n")
    assert found == pytest.approx(json.loads(path.read_text()), rel=1e-5, abs=1e-6)
