"""Checks a job before its processes start: `python -m ldm.preflight +experiment=<name>`.

It takes the arguments of ldm.train. One process builds what the training would build, and compares it with
the machine: data, codec, tasks, disk. What would fail on every node, perhaps after hours in a queue, is
refused here in one sentence.
"""

import os
from collections.abc import Mapping

from omegaconf import DictConfig

from ldm import UserError
from ldm.config import build, build_data, entry, plain


@entry("train")
def main(config: DictConfig) -> None:
    """Refuses a training that can't succeed, or prints what it writes."""
    check_tasks(
        devices=config.trainer.devices,
        num_nodes=config.trainer.get("num_nodes", 1),
        accelerator=config.trainer.accelerator,
        environment=os.environ,
    )
    # only now: Lightning takes seconds to import
    from ldm.planning.checks import check_needs, check_start, check_target, needs_of

    stage = build(config.model.stage)
    data = build_data(config, stage)
    check_start(stage, plain(config))
    check_target(plain(config), stage, data)
    needs = needs_of(stage, data, config.runs)
    check_needs(needs)
    print(f"{config.name} can start: it writes {', '.join(f'{need.size} ({need.place})' for need in needs)}")


def check_tasks(*, devices: object, num_nodes: int, accelerator: str, environment: Mapping[str, str]) -> None:
    """Refuses a trainer that doesn't fit the tasks, nodes and GPUs of the SLURM job, if this is one."""
    if "SLURM_JOB_ID" not in environment:
        return
    total = int(environment.get("SLURM_NTASKS", 1))
    if total > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise UserError(f"--ntasks={total} doesn't say how many tasks a node has: add --ntasks-per-node")
    nodes, tasks = (int(environment.get(f"SLURM_{name}", 1)) for name in ("NNODES", "NTASKS_PER_NODE"))
    gpus = environment.get("SLURM_GPUS_ON_NODE", "0")  # 0 or words: none asked for, or SLURM doesn't know
    if accelerator != "cpu" and gpus.isdecimal() and int(gpus) not in (0, tasks):
        raise UserError(
            f"--ntasks-per-node={tasks} but {gpus} GPUs a node: one task has one GPU, submit with "
            f"--ntasks-per-node={gpus} or --gpus-per-node={tasks}"
        )
    if isinstance(devices, int) and devices > 0 and devices != tasks:
        raise UserError(
            f"trainer.devices={devices} but --ntasks-per-node={tasks}: one task has one device, submit with "
            f"--ntasks-per-node={devices} or leave trainer.devices out"
        )
    if num_nodes != nodes:
        raise UserError(
            f"trainer.num_nodes={num_nodes} but --nodes={nodes}: submit with --nodes={num_nodes} or leave "
            "trainer.num_nodes out"
        )


if __name__ == "__main__":
    main()
