"""A run is resumed by its own command; every difference is refused by name, or taken and recorded."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.resuming import differences, flat, source_of
from ldm.checkpoints.run import Run

pytestmark = pytest.mark.usefixtures("unrendered_figures")

STEPS = 4
SAME = {"read": {}, "reads": {}, "aliases": {}}  # what `differences` gets of two configs without data


@pytest.fixture(scope="module")
def options(write_emoji, bundle_path, tiny_backbone, tmp_path_factory) -> list[str]:
    """Those of a tiny training, with a data set of its own."""
    root = write_emoji(tmp_path_factory.mktemp("resuming") / "data").root
    return [
        *(*tiny_backbone, "backbone.latent_channels=4", "backbone.context_dim=16"),
        *(f"data.root={root}", "data.size=16", "batch_size=4", f"steps={STEPS}", "sampler.steps=2"),
        *("trainer.precision=32", "trainer.log_every_n_steps=1", "callbacks.saving.every=1"),
        *(f"codec.autoencoder={bundle_path}", f"codec.text_encoder={bundle_path}"),
    ]


@pytest.fixture(scope="module")
def begun(command, options, tmp_path_factory) -> Path:
    """Folder of runs with one that has taken a step; what ended it is taken out of its config."""
    runs = tmp_path_factory.mktemp("begun")
    ended = command("ldm.train", *options, f"runs={runs}", "+trainer.limit_train_batches=1", status=1)
    assert f"the training ended at step 1 of {STEPS}; the same command resumes the training\n" in ended.err
    (path,) = (runs / "default").iterdir()
    config = yaml.safe_load((path / "config.yaml").read_text())
    del config["trainer"]["limit_train_batches"]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return runs


@pytest.fixture
def stopped(begun, tmp_path) -> Run:
    """A run that ended after its first step."""
    (path,) = (shutil.copytree(begun, tmp_path / "runs") / "default").iterdir()
    return Run(path=path)


@pytest.fixture
def call(command, options, tmp_path):
    """`call(*arguments)`: how a training ended, 0 or its sentence, and what it printed."""

    def run(*arguments: str) -> tuple[int | str, str]:
        ended = command("ldm.train", *options, f"runs={tmp_path / 'runs'}", *arguments, status=None)
        return (ended.err if ended.status else 0), ended.out

    return run


def rates(run: Run) -> list[float]:
    """The learning rate of each step."""
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [record["train/lr"] for record in map(json.loads, lines) if "train/lr" in record]


def test_a_training_that_ended_early_leaves_no_bundle_and_is_resumed_by_its_command(call, stopped):
    assert not stopped.finished
    status, printed = call()
    assert status == 0
    assert f"continuing {stopped.path}" in printed
    assert stopped.finished
    record, bundle = stopped.record(), Bundle.open(stopped.path)
    assert [(each["step"], each["changed"]) for each in record["resumed"]] == [(1, {})]
    assert bundle.entry("origin")["config_hash"] == record["config_hash"]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "optimizer.lr=1e-5",
            "trained with optimizer.lr=0.001 and you ask for 1e-05: .*changes=.optimizer.lr.'",
        ),
        ("steps=9", r"trained with steps=4 and you ask for 9: .* 'resume_changes=\[steps\]', for a new run"),
        ("batch_size=2", r"trained with batch_size=4 and you ask for 2: .* 'resume_changes=\[batch_size\]'"),
        ("seed=5", r"trained with seed=0 and you ask for 5: .* 'resume_changes=\[seed\]'"),
        ("~callbacks.ema", r"callbacks.ema.decay=0.999 and you ask for null: to resume"),
        (
            "optimizer=muon",
            r"optimizer._target_=torch.optim.AdamW and you .*, which can't change within a run",
        ),
        ("backbone.width=64", "backbone.width=32 and you ask for 64, which can't change within a run"),
        ("process=ddpm", r"process.prediction._target_=\S+Flow and you ask for \S+Eps"),
        (
            "trainer.accumulate_grad_batches=2",
            "accumulate_grad_batches=1 and you ask for 2, which can't change",
        ),
    ],
)
def test_a_named_run_is_not_resumed_with_other_options(call, stopped, option, sentence):
    before = (stopped.path / "run.json").read_bytes()
    status, _ = call(option, f"resume={stopped.path}")
    assert isinstance(status, str)
    assert status.count("\n") == 1
    assert re.search(sentence, status)
    assert (stopped.path / "run.json").read_bytes() == before


def test_what_does_not_decide_the_result_may_differ(call, stopped):
    options = (
        "name=other",
        "data.num_workers=1",
        "callbacks.saving.every=3",
        "summary=better",
        "patience=50",
        "callbacks=diffusion",
    )
    status, _ = call(*options, f"resume={stopped.path}")
    assert status == 0
    assert stopped.record()["resumed"][-1]["changed"] == {}
    assert stopped.config()["name"] == Bundle.open(stopped.path).entry("origin")["experiment"] == "default"


def test_another_number_of_ranks_is_told_where_no_option_says_it(call, stopped):
    record = stopped.record()
    record["inputs"]["ranks"] = 4  # `trainer.devices=auto` on another machine
    (stopped.path / "run.json").write_text(json.dumps(record))
    status, _ = call()
    assert "trained with ranks=4 and you ask for 1: to resume it with the new values type" in status
    status, _ = call("resume_changes=[ranks]")
    assert status == 0
    assert stopped.record()["resumed"][-1]["changed"] == {"ranks": [4, 1]}


@pytest.mark.parametrize("resume", ["auto", "named"])
def test_a_learning_rate_that_is_changed_is_used_and_recorded(call, stopped, resume):
    options = ["optimizer.lr=1e-5", "resume_changes=[optimizer.lr]"]
    status, _ = call(*options, *([f"resume={stopped.path}"] if resume == "named" else []))
    assert status == 0
    assert rates(stopped) == pytest.approx([1e-3 / 100, 2e-5 / 100, 3e-5 / 100, 4e-5 / 100])  # warmup 100
    assert stopped.record()["resumed"][-1]["changed"] == {"optimizer.lr": [0.001, 1e-5]}
    assert stopped.config()["optimizer"]["lr"] == 1e-5
    assert "From step 1 on with optimizer.lr=1e-05, before 0.001." in (stopped.path / "report.md").read_text()
    state = torch.load(stopped.state(), weights_only=True)
    assert {group["initial_lr"] for group in state["optimizer_states"][0]["param_groups"]} == {1e-5}
    assert "is finished" in call("optimizer.lr=1e-5")[1]  # from now on it is this command's run


def test_a_schedule_of_other_length_counts_from_the_first_resumed_step(call, stopped):
    short = ("model.stage.decay.warmup=0", "resume_changes=[model.stage.decay.warmup,steps]", "steps=3")
    status, _ = call(*short, f"resume={stopped.path}")
    assert status == 0
    assert rates(stopped)[1:] == pytest.approx([0.75e-3, 0.25e-3])  # (1 + cos(pi k / 3)) / 2 at k = 1, 2


def test_a_batch_of_other_size_goes_on_after_the_last_sample_and_takes_the_steps_that_are_left(call, stopped):
    status, _ = call("batch_size=2", "resume_changes=[batch_size]", f"resume={stopped.path}")
    assert status == 0
    assert len(rates(stopped)) == STEPS
    state = torch.load(stopped.state(), weights_only=True)
    loader = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == [{"position": 4 + 3 * 2, "batches": STEPS}]


def test_a_finished_run_is_extended_and_its_first_bundle_kept(call, stopped):
    assert call()[0] == 0
    status, _ = call("steps=6", f"resume={stopped.path}")
    assert "steps=4 and you ask for 6" in status
    status, _ = call("steps=6", "resume_changes=[steps]", f"resume={stopped.path}")
    assert status == 0
    assert len(rates(stopped)) == 6
    assert Bundle.open(stopped.path).path.name == "bundle"
    assert Bundle.open(stopped.path / f"bundle-step={STEPS:08d}").config["size"] == 16


def test_changes_that_leave_no_step_or_mean_no_run_are_refused(call, stopped):
    assert call()[0] == 0
    status, _ = call("optimizer.lr=1e-5", "resume_changes=[optimizer.lr]", f"resume={stopped.path}")
    assert "has taken 4 steps, and trainer.max_steps=4 leaves none to take with other options" in status
    assert stopped.finished
    status, _ = call("backbone.width=64", "resume_changes=[steps]")
    assert "no run of default in" in status
    assert "resume_changes=['steps'] but resume=never" in call("resume=never", "resume_changes=[steps]")[0]


def test_other_pictures_under_the_same_path_are_refused_and_the_same_elsewhere_are_the_same(
    call, stopped, options, write_emoji, tmp_path
):
    (root,) = (Path(option.removeprefix("data.root=")) for option in options if "data.root=" in option)
    moved, own = shutil.copytree(root, tmp_path / "moved"), tmp_path / "own"
    status, printed = call(f"data.root={moved}", "+trainer.limit_train_batches=1", "resume=never")
    assert "ended at step 1" in status
    (begun,) = set((tmp_path / "runs" / "default").iterdir()) - {stopped.path}
    shutil.rmtree(moved)
    index = write_emoji(moved, samples_per_shard=4)
    for resume in ("auto", begun):
        status, _ = call(f"data.root={moved}", "+trainer.limit_train_batches=1", f"resume={resume}")
        assert f"trained with data.root={moved} (sha256 " in status
        assert f"and you ask for {moved} (sha256 {index.sha256[:12]})" in status
    status, printed = call(f"data.root={shutil.copytree(root, own)}")
    assert status == 0
    assert f"continuing {stopped.path}" in printed
    assert stopped.config()["data"]["root"] == str(own)


def test_another_codec_under_the_same_path_is_refused(call, bundle_path, tmp_path):
    codec = shutil.copytree(bundle_path, tmp_path / "codec")
    own = (f"codec.autoencoder={codec}", f"codec.text_encoder={codec}", "+trainer.limit_train_batches=1")
    assert "ended at step 1" in call(*own)[0]
    config = yaml.safe_load((codec / "config.yaml").read_text())
    config["latents"]["scale"] = [0.1] * 4
    (codec / "config.yaml").write_text(yaml.safe_dump(config))
    status, _ = call(*own)
    assert f"trained with codec.autoencoder={codec} (sha256 " in status
    assert "codec.text_encoder" not in status
    assert "which can't change within a run" in status


def test_a_run_of_an_earlier_version_is_resumed_and_says_what_was_not_compared(call, stopped):
    record = stopped.record()
    del record["inputs"]
    (stopped.path / "run.json").write_text(json.dumps(record | {"result_hash": "f" * 64}))
    status, printed = call()
    assert status == 0
    assert "is of an earlier version: its data and codec were not recorded or compared" in printed
    inputs = {"data.root", "codec.autoencoder", "codec.text_encoder", "ranks"}
    assert stopped.record()["inputs"].keys() == inputs


def test_a_checkpoint_of_another_network_is_refused_in_a_sentence(call, stopped):
    config = stopped.config()
    config["backbone"]["width"] = config["model"]["stage"]["net"]["width"] = 64
    (stopped.path / "config.yaml").write_text(yaml.safe_dump(config))
    status, _ = call("backbone.width=64", f"resume={stopped.path}")
    assert "is of another network: " in status
    assert status.count("\n") == 1


@pytest.mark.parametrize("name", ["checkpoints", "bundle", "report.md"])
def test_a_link_in_a_run_is_refused_before_the_first_step(call, stopped, tmp_path, name):
    if (stopped.path / name).exists():
        shutil.move(stopped.path / name, tmp_path / "moved")
    (stopped.path / name).symlink_to(tmp_path / "moved")
    before = (stopped.path / "run.json").read_bytes()
    status, printed = call(f"resume={stopped.path}")
    assert f"{name} is a link to {tmp_path / 'moved'}, and nothing is written" in status
    assert "continuing" not in printed
    assert (stopped.path / "run.json").read_bytes() == before


def test_options_are_compared_by_value_and_repeated_ones_once():
    assert flat({"a": {"b": 1, "c": None}, "d": [], "summary": "x"}) == {"a.b": 1, "d": []}
    aliases = {"model.net": "backbone", "trainer.max_steps": "steps", "model.data.root": "data.root"}
    assert source_of("model.net.channels", aliases) == "backbone.channels"
    assert source_of("model.network", aliases) == "model.network"


def test_a_target_that_has_moved_is_no_difference():
    old = {"trainer": {"strategy": {"_target_": "ldm.sharding.Sharded"}}, "steps": 4}
    new = {"trainer": {"strategy": {"_target_": "ldm.distributed.sharding.Sharded"}}, "steps": 4}
    assert differences(old, new, **SAME) == {}
    assert differences(new, old | {"steps": 5}, **SAME).keys() == {"steps"}


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [("squared_weight", 0.0, 1.0), ("statistics_pictures", 2048, 64), ("perceptual", None, {"size": 64})],
)
def test_an_option_that_a_run_has_not_heard_of_is_compared_by_its_default(key, default, other):
    lacking = {"model": {"stage": {"_target_": "ldm.stages.autoencoder.AutoencoderStage", "kl_weight": 0.1}}}
    given, changed = ({"model": {"stage": lacking["model"]["stage"] | {key: x}}} for x in (default, other))
    assert differences(lacking, given, **SAME) == differences(given, lacking, **SAME) == {}
    ((found, values),) = differences(lacking, changed, **SAME).items()
    assert found.startswith(f"model.stage.{key}")
    assert values.old == default


def test_a_null_is_not_the_default():
    node = {"_target_": "ldm.stages.autoencoder.AutoencoderStage", "statistics_pictures": None}
    assert differences(node, node | {"statistics_pictures": 2048}, **SAME) == {
        "statistics_pictures": (None, 2048)
    }


def test_the_defaults_of_lightning_and_torch_count_too():
    trainer, adamw = {"_target_": "pytorch_lightning.Trainer"}, {"_target_": "torch.optim.AdamW"}
    assert differences(trainer, trainer | {"accumulate_grad_batches": 1}, **SAME) == {}
    assert differences(adamw, adamw | {"eps": 1e-8}, **SAME) == {}
    assert differences(adamw, adamw | {"eps": 1e-6}, **SAME) == {"eps": (1e-8, 1e-6)}


@pytest.mark.parametrize("target", ["ldm.no.such", "os.system", "ldm.construct.json.loads", 3])
def test_of_what_is_no_target_no_default_is_known(target):
    lacking = {"_target_": target}
    assert differences(lacking, lacking | {"eps": 1e-8}, **SAME) == {"eps": (None, 1e-8)}


def test_a_run_without_the_keys_of_target_is_resumed_by_its_own_command(call, stopped):
    config = stopped.config()
    config.pop("target", None)
    del config["callbacks"]["target"]
    (stopped.path / "config.yaml").write_text(yaml.safe_dump(config))
    status, _ = call("target=0.5", f"resume={stopped.path}")
    assert "trained with target=null and you ask for 0.5: to resume it" in status
    status, printed = call()
    assert status == 0
    assert f"continuing {stopped.path}" in printed


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("batch_size=0", "data.batch_size=0 must be at least 1"),
        ("optimizer.lr=0", "optimizer.lr=0 must be a finite number above 0"),
        ("model.stage.decay.warmup=-1", "decay.warmup=-1 must be at least 0"),
        ("model.stage.caption_drop=1.5", "caption_drop=1.5 must lie in"),
        ("steps=0", "steps=0 must lie between 1 and 10000000"),
        ("seed=-1", "seed=-1 must lie between 0 and"),
        ("callbacks.ema.decay=1", "decay=1 must lie in"),
    ],
)
def test_an_option_out_of_range_is_refused_and_leaves_no_run(call, tmp_path, argument, sentence):
    status, _ = call(argument)
    assert sentence in status
    assert not list(tmp_path.glob("runs/default/*"))
