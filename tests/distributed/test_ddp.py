"""Two ranks with a batch each train as one rank does with the batch of both."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch.testing import assert_close

from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.pictures import SampleGrid
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import states, step_of
from ldm.construct import construct
from ldm.data.codes import CodeData
from ldm.data.datamodule import PictureData
from ldm.data.features import FeaturedLatents
from ldm.data.latents import LatentData
from ldm.diffusion.discrete import released
from ldm.distributed.ranks import world_size
from ldm.generators.autoregressive import load_clip
from ldm.generators.code_bundle import load_codes
from ldm.models.clip import CLIP
from ldm.models.losses import PatchDiscriminator
from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.clip import ContrastiveStage
from ldm.stages.image_tokenizer import TokenizerStage
from ldm.stages.optim import warmup_constant
from ldm.stages.terms import ContrastiveFlow, LatentAlignment, LayerSync
from ldm.stages.text_to_codes import DiscreteDiffusionStage, TwoLevelStage
from tests.autoregressive.tiny import make_stage, write_clip
from tests.fixtures import IMAGE_TOKENIZER, TWO_LEVELS

BATCH = 8  # of all ranks together
IMAGE_ENCODER = {
    "_target_": "ldm.models.clip.VisionTransformer",
    "image_size": 16,
    "patch_size": 8,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "embed_dim": 8,
}

DENOISER = {
    "_target_": "ldm.models.code_denoiser.CodeDenoiser",
    **{"num_codes": 16, "grid": 4, "num_steps": 10, "context_dim": 16, "context_length": 16},
    **{"width": 16, "depth": 1, "num_heads": 2},
}
PRIOR = {
    "_target_": "ldm.models.two_level.TransformerPrior",
    **{"num_codes": 8, "width": 16, "depth": 1, "num_heads": 2},
}
PRIORS = {
    "_target_": "ldm.models.two_level.TwoLevelPriors",
    "top": PRIOR | {"grid": 2, "context_dim": 16},
    "bottom": PRIOR | {"grid": 4, "coarse": {"num_codes": 8, "grid": 2}},
}


class FirstGradients(Callback):
    """The first gradients of each parameter, as its optimizer gets them."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        used = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in pl_module.named_parameters():
            if id(parameter) in used and name not in self.found:
                self.found[name] = parameter.grad.clone()


@pytest.fixture
def train(make_trainer, emoji, codec):
    """`train(stage, steps=...)`: its first gradients and last weights, trained on the batch of all ranks."""

    def run(stage, *callbacks, steps=1, **options):
        count = world_size()
        several = {"devices": count, "strategy": DDPStrategy()} if count > 1 else {}
        data = PictureData(root=str(emoji), size=16, batch_size=BATCH // count, seed=3)
        frozen = {
            name: getattr(stage, name) for name in ("codec", "codes", "embedder") if hasattr(stage, name)
        }
        if frozen:
            data = (CodeData if "codes" in frozen else FeaturedLatents)(pictures=data, **frozen)
        first = FirstGradients()
        settings = {"precision": "32-true"} | several | options
        make_trainer(steps, first, *callbacks, **settings).fit(stage, datamodule=data)
        return [first.found, {name: p.detach().clone() for name, p in stage.named_parameters()}]

    return run


@pytest.fixture
def clip_stage(specs, tokenizer):
    def make() -> ContrastiveStage:
        torch.manual_seed(4)
        net = CLIP(text=construct(specs["text_encoder"]), image=construct(IMAGE_ENCODER))
        return ContrastiveStage(
            net=net, tokenizer=tokenizer, optimizer=partial(torch.optim.SGD, lr=0.1), decay=lambda step: 1.0
        )

    return make


@pytest.fixture
def adversarial_stage(build_network, specs):
    def make() -> AutoencoderStage:
        net = build_network(specs["autoencoder"], 11)
        torch.manual_seed(1)
        return AutoencoderStage(
            net=net,
            optimizer=partial(torch.optim.SGD, lr=0.1),
            decay=partial(warmup_constant, warmup=1),
            kl_weight=1e-4,
            discriminator=PatchDiscriminator(channels=4, layers=1),
            seed=2,
        )

    return make


def assert_same(ours, theirs) -> None:
    """Equal to 1e-6, or to 1e-6 of a tensor's largest value where that is above 1."""
    assert max(value.abs().max().item() for value in theirs.values()) > 0.01
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        limit = 1e-6 * max(1.0, value.abs().max().item())
        assert_close(ours[name], value, rtol=0, atol=limit, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_denoiser_gets_the_same_gradients_and_draws_the_same(train, diffusion_stage, ranks, accumulated):
    def act(rank):
        stage = diffusion_stage(decay=lambda step: 1.0)
        stage.optimizer = partial(torch.optim.SGD, lr=0.1)
        trained = train(stage, steps=3, accumulate_grad_batches=accumulated)
        return [*trained, stage.generator().latents(["a cat", "red apple"], [1, 2])]

    alone, together = act(0), ranks(act)
    for gradients, weights, latents in together:
        assert_same(gradients, alone[0])
        assert_same(weights, alone[1])
        assert_close(latents, alone[2], rtol=0, atol=1e-5)
    assert all(torch.equal(together[0][1][name], value) for name, value in together[1][1].items())


def test_terms_and_their_projectors_get_the_same_gradients(
    train, diffusion_stage, ranks, build_network, specs
):
    net = build_network(specs["denoiser"] | {"depth": 2}, 2)

    def act(rank):
        terms = {"sra": partial(LatentAlignment, inner=8), "sync": LayerSync, "contrastive": ContrastiveFlow}
        stage = diffusion_stage(net=deepcopy(net), terms=terms, decay=lambda step: 1.0)
        stage.optimizer = partial(torch.optim.SGD, lr=0.1)
        return train(stage, steps=2)

    alone, together = act(0), ranks(act)
    assert {name.partition(".")[0] for name in alone[0]} == {"net", "terms"}
    for gradients, weights in together:
        assert_same(gradients, alone[0])
        assert_same(weights, alone[1])


def test_clip_gets_the_gradients_of_one_big_batch(train, clip_stage, ranks):
    alone, together = train(clip_stage()), ranks(lambda rank: train(clip_stage()))
    assert "net.logit_scale" in alone[0]
    for gradients, _ in together:
        assert_same(gradients, alone[0])


def test_an_autoencoder_and_its_adversary_get_the_same_gradients(train, adversarial_stage, ranks):
    alone, together = train(adversarial_stage()), ranks(lambda rank: train(adversarial_stage()))
    assert {name.partition(".")[0] for name in alone[0]} == {"net", "discriminator"}
    for gradients, weights in together:
        assert_same(gradients, alone[0])
        assert_same(weights, alone[1])


@pytest.mark.parametrize(("spec", "accumulated"), [(IMAGE_TOKENIZER, 1), (TWO_LEVELS, 2)])
def test_codebooks_of_two_ranks_are_those_of_the_batches_of_both(
    train, build_network, ranks, spec, accumulated
):
    """VQ-VAE-2 3: counts, sums, and the vectors that replace unused codes, of each level."""

    def act(rank):
        stage = TokenizerStage(
            net=build_network(spec, 11),
            optimizer=partial(torch.optim.SGD, lr=0.1),
            decay=lambda step: 1.0,
            seed=2,
        )
        return [*train(stage, steps=3, accumulate_grad_batches=accumulated), dict(stage.net.named_buffers())]

    alone, together = act(0), ranks(act)
    counts = [value for name, value in alone[2].items() if name.endswith("counts")]
    assert len(counts) == len(build_network(spec, 11).levels)
    assert min(each.min() for each in counts) > 0  # of all codes, those without a picture were replaced
    for gradients, weights, codebook in together:
        assert_same(gradients, alone[0])
        assert_same(weights, alone[1])
        assert_same(codebook, alone[2])
    assert all(torch.equal(together[0][2][name], value) for name, value in together[1][2].items())


@pytest.mark.parametrize("system", ["dalle", "cogview", "clipgen"])
def test_a_network_on_codes_gets_the_same_gradients_and_pictures(
    train, codes, tokenizer, tmp_path, ranks, system
):
    clip = load_clip(bundle=str(write_clip(tmp_path / "clip", tokenizer)))

    def act(rank):
        stage = make_stage(system, codes, clip, partial(torch.optim.SGD, lr=0.1))
        return [*train(stage, steps=2), stage.generator()(["a cat"], [1])]

    alone, together = act(0), ranks(act)
    for gradients, weights, pictures in together:
        assert_same(gradients, alone[0])
        assert_same(weights, alone[1])
        assert torch.equal(pictures, alone[2])


def test_priors_of_two_levels_get_the_same_gradients_and_pictures(
    train, two_levels_path, codec, build_network, ranks
):
    codes = load_codes(image_tokenizer=str(two_levels_path))

    def act(rank):
        stage = TwoLevelStage(
            net=build_network(PRIORS, 3),
            codes=codes,
            codec=codec,
            sampling={"top_k": 4},
            optimizer=partial(torch.optim.SGD, lr=0.1),
            decay=lambda step: 1.0,
            caption_drop=0.5,
        )
        return [*train(stage, steps=2), stage.generator()(["a cat"], [1])]

    alone, together = act(0), ranks(act)
    assert {name.split(".")[1] for name in alone[0]} == {"top", "bottom"}
    for gradients, weights, pictures in together:
        assert_same(gradients, alone[0])
        assert_same(weights, alone[1])
        assert torch.equal(pictures, alone[2])


def test_importance_of_timesteps_follows_the_losses_of_all_ranks(train, codes, codec, build_network, ranks):
    """Of VQ-Diffusion: the timesteps of the second step depend on the losses of the first."""

    def act(rank):
        stage = DiscreteDiffusionStage(
            net=build_network(DENOISER, 3),
            process=released(num_codes=16, num_steps=10),
            codes=codes,
            codec=codec,
            sampling={"steps": 2},
            optimizer=partial(torch.optim.SGD, lr=0.1),
            decay=lambda step: 1.0,
            importance=True,
        )
        stage.history.counts.fill_(11)  # as after a while
        return [*train(stage, steps=2), {"squares": stage.history.squares}]

    alone, together = act(0), ranks(act)
    for gradients, weights, history in together:
        assert_same(gradients, alone[0])
        assert_same(weights, alone[1])
        assert_close(history["squares"], alone[2]["squares"], rtol=1e-5, atol=0)


FAULTS = {
    "data": "gradients",
    "loss": "losses",
    "gradient": "gradients",
    "moment": "optimizer's moments",
}


@pytest.mark.parametrize("where", FAULTS)
def test_all_ranks_refuse_the_step_at_which_one_is_not_finite(train, diffusion_stage, ranks, tmp_path, where):
    class Poison(Callback):
        """One value of the second rank that is no number, at the third batch."""

        due = False

        def on_train_start(self, trainer, pl_module) -> None:
            if where == "gradient":
                weight = pl_module.net.patches_out.weight
                weight.register_hook(lambda g: g * (float("inf") if self.due else 1))
            if where == "loss":  # whose gradients are as they were
                loss = pl_module.loss
                pl_module.loss = lambda batch: loss(batch) + (float("nan") if self.due else 0)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            self.due = batch_idx == 2 and trainer.global_rank == 1
            if self.due and where == "data":
                batch["mean"].view(-1)[7] = float("nan")
            if self.due and where == "moment":
                moments = next(iter(trainer.optimizers[0].state.values()))
                moments["exp_avg"].view(-1)[7] = float("inf")

    class Kept(Callback):
        """The weights after the last step that was taken."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.step = trainer.global_step
            self.weights = [p.detach().clone() for p in pl_module.parameters()]

    def act(rank):
        stage, kept = diffusion_stage(), Kept()
        guards = [Gradients(clip=1.0, folder=str(tmp_path)), SaveStates(folder=str(tmp_path), every=1)]
        try:
            train(stage, EMA(decay=0.5), *guards, Poison(), kept, steps=6)
        except FloatingPointError as error:
            same = all(torch.equal(a, b) for a, b in zip(kept.weights, stage.parameters(), strict=True))
            return [str(error), kept.step, same, stage.trainer.global_step]

    found = ranks(act)
    record = (tmp_path / "refused.json").read_text()
    for message, kept, same, step in found:
        assert message.startswith(f"step 2: the {FAULTS[where]} are not finite")
        assert "positions 16 to 23" in message
        assert ("the loss is not finite on ranks [1]" in message) == (where in ("data", "loss"))
        assert (kept, same) == (2, True)
        assert (
            step == 3
        )  # the trainer has counted the refused step when the host learns of it; nothing else has
    assert step_of(states(tmp_path)[-1]) == 2
    assert '"step": 2' in record
    assert record.count('"keys"') == 2
    assert ('"nan"' in record) == (where in ("data", "loss"))


def test_a_sheet_is_drawn_by_all_ranks(diffusion_stage, ranks, tmp_path, make_trainer, emoji, codec):
    def act(rank):
        count = world_size()
        grid = SampleGrid(prompts=["a cat", "red apple"], seeds=[3], folder=str(tmp_path / str(count)))
        several = {"devices": count, "strategy": DDPStrategy()} if count > 1 else {}
        pictures = PictureData(root=str(emoji), size=16, batch_size=2, seed=3)
        data = LatentData(pictures=pictures, codec=codec)
        trainer = make_trainer(
            1, grid, limit_val_batches=1, val_check_interval=1, precision="32-true", **several
        )
        stage = diffusion_stage(decay=lambda step: 0.0)
        trainer.fit(stage, datamodule=data)

    act(0)
    for count in (2, 3):  # one rank each, and one without a share
        ranks(act, count)
        drawn, alone = ((tmp_path / name / "step=000001.png").read_bytes() for name in (str(count), "1"))
        assert drawn == alone
