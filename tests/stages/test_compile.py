"""A compiled network is the same network: in its states, its average and its drawings."""

import torch

from benchmarks.chaos.equality import compared, differences
from ldm.callbacks.ema import EMA
from ldm.callbacks.pictures import SampleGrid
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import newest_state


def test_a_compiled_network_leaves_the_states_and_sheets_of_one_that_is_not(
    diffusion_stage, latents, make_trainer, tmp_path
):
    """The compiler's own code would differ by rounding, so what it wraps runs as it is."""

    def trained(name: str, *, compiled: bool) -> tuple[dict, bytes]:
        folder, stage = tmp_path / name, diffusion_stage()
        if compiled:
            stage.net.compile()
        own = [
            EMA(decay=0.5),
            SaveStates(folder=str(folder), every=2),
            SampleGrid(prompts=["a cat"], seeds=[0], folder=str(folder)),
        ]
        trainer = make_trainer(4, *own, val_check_interval=4, limit_val_batches=1)
        with torch.compiler.set_stance("force_eager"):
            trainer.fit(stage, datamodule=latents)
        state = torch.load(newest_state(folder), weights_only=True)
        return compared(state), (folder / "step=000004.png").read_bytes()

    (ours, sheet), (theirs, other) = trained("compiled", compiled=True), trained("plain", compiled=False)
    assert differences(ours, theirs) == []
    assert sheet == other
