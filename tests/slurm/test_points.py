"""Points of a sweep: their folders, their commands, and that they are processes of their own."""

import os
import shlex
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from benchmarks.processes import is_alive, wait_for
from hydra_plugins.ldm_sweeps.launching import returned
from hydra_plugins.ldm_sweeps.local import LocalLauncher, run_all, start, stop
from hydra_plugins.ldm_sweeps.points import Point, label_of, parsed, points_of, read_points
from hydra_plugins.ldm_sweeps.slurm import SlurmLauncher
from ldm.config import CONF, check, quoted

pytestmark = pytest.mark.usefixtures("unrendered_figures")


@pytest.fixture
def multirun(tmp_path):
    """`multirun(name, *overrides)`: the config of a multirun whose folder is a temporary one."""

    def make(name: str, *overrides: str) -> DictConfig:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose(name, overrides=["hydra/launcher=local", *overrides], return_hydra_config=True)
        config.hydra.sweep.dir = str(tmp_path / "it's a=sweep")
        config.hydra.job.config_name = name
        config.hydra.overrides.task = list(overrides)
        return config

    return make


@pytest.fixture
def make_point(tmp_path):
    """`make_point(label, code)`: a point that runs a module of these lines and says so."""

    def make(label: str, code: str) -> Point:
        folder = tmp_path / label
        folder.mkdir()
        (folder / f"{label}.py").write_text(code)
        return Point(folder=folder, swept={"key": label}, command=[label])

    return make


@pytest.fixture
def python_path(monkeypatch):
    """`python_path(points)`: their modules can be run."""
    return lambda points: monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(p.folder) for p in points))


def test_a_point_is_the_command_that_one_would_type(multirun):
    config = multirun("train", "steps=5", "optimizer.betas=[0.9, 0.95]")
    jobs = [["steps=5", "optimizer.betas=[0.9,0.95]", f"optimizer.lr={lr}"] for lr in ("1e-3", "1e-2")]
    points = points_of(config, jobs)
    assert [point.label for point in points] == ["optimizer.lr_1e-3", "optimizer.lr_1e-2"]
    assert points[0].command[:4] == ["ldm.train", *jobs[0]]
    assert read_points(Path(config.hydra.sweep.dir)) == sorted(points, key=lambda point: point.label)


def test_where_a_point_writes_survives_hydras_grammar(multirun):
    config = multirun("evaluate")
    (point,) = points_of(config, [["scale=2"]])
    place = OverridesParser.create().parse_override(point.command[-2])
    assert (place.key_or_group, place.value()) == ("out", str(point.folder / "evaluation"))


@pytest.mark.parametrize("text", ["a", "a=b", "it's", "a,b c", "${x}", "a\\", "it\\'s"])
def test_quoted_texts_are_themselves(text):
    assert OverridesParser.create().parse_override(quoted(f"key={text}")).value() == text


def test_points_with_one_name_are_refused(multirun):
    with pytest.raises(ValueError, match="2 points of the sweep are called seed_1"):
        points_of(multirun("train"), [["seed=1"], ["seed=1"]])


def test_seeds_are_trained_one_by_one_and_more_can_follow(multirun):
    few, more = (multirun("train", "+sweep=seeds", f"seeds={count}") for count in (2, 3))
    assert few.hydra.sweeper.params.seed == "range(0,2)"
    jobs = [[[f"seeds={count}", f"seed={number}"] for number in range(count)] for count in (2, 3)]
    first, then = (points_of(config, each) for config, each in zip((few, more), jobs, strict=True))
    assert first == then[:2]
    assert then[2].command[:2] == ["ldm.train", "seed=2"]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["seeds=0"], "seeds=0 must be at least 1"),
        (["seeds=-2"], "seeds=-2 must be"),
        (["seed=7"], "leave seed="),
    ],
)
def test_a_sweep_of_no_seeds_or_of_one_that_is_named_is_refused(multirun, typed, sentence):
    config = multirun("train", "+sweep=seeds", *typed)
    with pytest.raises(ValueError, match=sentence):
        points_of(config, [])


SWEEPS = [  # what is typed, and labels of the points
    (["backbone.channels=64,96,128"], [f"backbone.channels_{width}" for width in (64, 96, 128)]),
    (["seed=range(0,3)"], ["seed_0", "seed_1", "seed_2"]),
    (["optimizer.lr=choice(1e-3,2e-3)"], ["optimizer.lr_0.001", "optimizer.lr_0.002"]),
    (["seed=0", "seed=0,1"], ["seed_0", "seed_1"]),
    (["summary='a, b','c'"], ["summary__a_b_", "summary__c_"]),
    (["summary='a,b','a;b'"], ["summary__a_b__2bb28389", "summary__a_b__7e12b116"]),
    (["optimizer.betas=[0.9,0.95],[0.9,0.99]"], ["optimizer.betas__0.9_0.95_", "optimizer.betas__0.9_0.99_"]),
    (["+data.crop={_target_:a},{_target_:b}"], ["data.crop___target__a_", "data.crop___target__b_"]),
    (["++data.flip=true,false", "~callbacks.ema", "seed=3"], ["data.flip_True", "data.flip_False"]),
    (
        ["sampler=ddim,heun", "process=flow,x0"],
        [f"sampler_{s}__process_{p}" for s in ("ddim", "heun") for p in ("flow", "x0")],
    ),
    (["sampler=glob([ddim,heun])"], ["sampler_ddim", "sampler_heun"]),
]


@pytest.mark.parametrize(("typed", "labels"), SWEEPS, ids=[" ".join(typed) for typed, _ in SWEEPS])
def test_a_sweep_typed_by_hand_has_its_points(multirun, typed, labels):
    check("train", typed, sweep=True)
    assert [point.label for point in typed_points(multirun("train"), typed)] == labels


def test_values_typed_by_hand_vary_beside_those_of_a_shipped_sweep(multirun):
    points = typed_points(multirun("train", "+sweep=learning_rate"), ["+sweep=learning_rate", "seed=0,1"])
    assert len(points) == 12
    assert points[1].label == "optimizer.lr_0.00025__seed_1"


PAGE = [
    shlex.split(line, comments=True)[2:]
    for line in (CONF.parent / "slurm" / "README.md").read_text().splitlines()
    if line.startswith("python -m ldm.") and "optuna" not in line
]


@pytest.mark.parametrize("command", PAGE, ids=" ".join)
def test_the_sweeps_of_the_page_have_points(multirun, command):
    verb, arguments = command[0].removeprefix("ldm."), [each for each in command[1:] if each != "-m"]
    check(verb, arguments, sweep="-m" in command)
    chosen = [each for each in arguments if "+sweep" in each or parsed([each])[0].is_hydra_override()]
    typed = [each for each in arguments if not parsed([each])[0].is_hydra_override()]
    assert len(typed_points(multirun(verb, *chosen), typed)) > 1


def typed_points(config: DictConfig, task: list[str]) -> list[Point]:
    """Points of a multirun whose command line has these overrides, as Hydra's own sweeper lists them."""
    config.hydra.overrides.task = task
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*params, *task])
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        points = points_of(config, jobs)
        for job in jobs:
            compose(config.hydra.job.config_name, overrides=job)
    return points


def test_what_another_command_has_finished_is_not_taken_for_this_ones(multirun):
    config = multirun("train", "steps=5")
    (point,) = points_of(config, [["steps=5", "seed=1"]])
    (point.folder / "name" / "run" / "bundle").mkdir(parents=True)
    (point.folder / "name" / "run" / "bundle" / "config.yaml").touch()
    assert points_of(config, [["steps=5", "seed=1"]]) == [point]
    with pytest.raises(ValueError, match=r"finished point with another command \(steps=5, steps=6\)"):
        points_of(multirun("train", "steps=6"), [["steps=6", "seed=1"]])


def test_a_command_that_chooses_no_folder_is_not_swept(multirun):
    config = multirun("train")
    del config.runs
    with pytest.raises(ValueError, match="train can't be swept"):
        points_of(config, [["seed=1"]])


def test_labels_need_no_quotes():
    assert label_of({"+sampler": "ddim", "a.b": "[1, 2]/c d"}) == "sampler_ddim__a.b__1_2_c_d"


def test_a_folder_without_points_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no sweep at"):
        read_points(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "point.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a point's record"):
        read_points(tmp_path)


def test_each_point_is_a_process_group_with_its_device(make_point, python_path):
    code = "import os; print(os.getpgid(0) == os.getpid(), os.environ['CUDA_VISIBLE_DEVICES'])"
    points = [make_point(name, code) for name in ("one", "two", "three")]
    python_path(points)
    run_all(points, LocalLauncher(jobs=2, devices=[3, 5]).slots)
    said = [(point.folder / "output.txt").read_text().split() for point in points]
    assert [own for own, _ in said] == ["True"] * 3
    assert {device for _, device in said} == {"3", "5"}


def test_a_point_that_fails_leaves_the_others_alone(make_point, python_path):
    finish = (
        "import pathlib\n"
        "folder = pathlib.Path(__file__).parent / 'evaluation'\n"
        "folder.mkdir()\n"
        "(folder / 'results.json').touch()\n"
    )
    points = [make_point("bad", "raise SystemExit(1)"), make_point("good", finish)]
    python_path(points)
    run_all(points, [{}])
    bad, good = returned(points, words="see there")
    assert good.return_value is None
    with pytest.raises(ValueError, match="1 of 2 points did not finish: bad; see there"):
        _ = bad.return_value


def test_ending_a_point_lets_it_save_and_leaves_no_process(make_point, python_path):
    code = (
        "import signal, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '100'])\n"
        "def save(*_):\n"
        "    print('saved', flush=True)\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    point = make_point("long", code)
    python_path([point])
    process = start(point, {}, share=1)
    output = point.folder / "output.txt"
    deadline = time.monotonic() + 20
    while "child" not in output.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop([process], grace=20)
    child = int(output.read_text().split()[1])
    assert "saved" in output.read_text()
    assert wait_for(lambda: not is_alive(child), seconds=10)  # the signal was sent; dying takes a moment


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LocalLauncher(jobs=0), "jobs=0 must be at least 1"),
        (lambda: LocalLauncher(jobs=2, devices=[0]), "names 1 devices for hydra.launcher.jobs=2"),
        (lambda: SlurmLauncher(parallel=0), "parallel=0 must be at least 1"),
        (lambda: SlurmLauncher(poll=0), "poll=0 must be above 0"),
    ],
)
def test_launchers_refuse_what_they_can_not_do(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_without_sbatch_a_sweep_names_the_other_launcher(multirun, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    launcher = SlurmLauncher()
    launcher.setup(hydra_context=None, task_function=None, config=multirun("train"))
    with pytest.raises(ValueError, match="take hydra/launcher=local"):
        launcher.launch([["seed=1"]], 0)


@pytest.mark.parametrize("path", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_value_of_a_shipped_sweep_is_one_of_its_command(path):
    verb = "evaluate" if path.stem in ("guidance", "sampler") else "train"
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose(verb, overrides=[f"+sweep={path.stem}"], return_hydra_config=True)
        for override in parsed(f"{key}={value}" for key, value in config.hydra.sweeper.params.items()):
            for value in override.sweep_string_iterator() if override.is_discrete_sweep() else ():
                compose(verb, overrides=[f"+sweep={path.stem}", f"{override.get_key_element()}={value}"])
    assert config.hydra.mode.name == "MULTIRUN"
    assert path.stem in Path(config.hydra.sweep.dir).parts


def test_a_sweep_goes_on_with_unfinished_points_only_and_names_them(command, tmp_path, emoji):
    arguments = [
        *(
            "hydra/launcher=local",
            f"hydra.sweep.dir={tmp_path}",
            "model=autoencoder",
            "callbacks=autoencoder",
        ),
        *("autoencoder.channels=8", "autoencoder.norm_groups=4", "autoencoder.blocks_per_level=1"),
        *("data.size=16", "batch_size=4", "steps=2", "trainer.precision=32", f"data.root={emoji}"),
    ]

    first = command("ldm.train", "-m", *arguments, "optimizer.lr=choice(1e-3)")
    assert "1 of 1 points to run" in first.out
    again = command("ldm.train", "-m", *arguments, "optimizer.lr=1e-3,-1", status=1)
    assert "1 of 2 points to run" in again.out
    assert again.sentence.startswith("1 of 2 points did not finish: optimizer.lr_-1; ")
    assert "must be a finite number above 0" in (tmp_path / "optimizer.lr_-1" / "output.txt").read_text()
    assert len(list(tmp_path.glob("*/*/*/bundle/config.yaml"))) == 1
