"""What a job is checked for before its processes start: `python -m ldm.preflight +experiment=<name>`.

It takes the arguments of ldm.train. One process builds what the training would build, and compares it with
the machine: data, codec, tasks, disk. What would fail on every node, perhaps after hours in a queue, is
refused here in a sentence.
"""

import os
from collections.abc import Mapping

from omegaconf import DictConfig

from ldm import UserError
from ldm.config import build, build_data, entry, plain


@entry("train")
def main(config: DictConfig) -> None:
    """Refuses a training that can't succeed, or says what it takes."""
    check_tasks(
        devices=config.trainer.devices,
        num_nodes=config.trainer.get("num_nodes", 1),
        accelerator=config.trainer.accelerator,
        environment=os.environ,
    )
    from ldm.planning.disk_room import (  # Lightning, which what is refused above needn't wait for
        check_needs,
        needs_of,
    )
    from ldm.planning.launch_checks import check_start

    stage = build(config.model.stage)
    data = build_data(config, stage)
    check_start(stage, plain(config))
    needs = needs_of(stage, data, config.runs)
    check_needs(needs)
    print(f"{config.name} can start: it writes {', '.join(f'{need.size} ({need.place})' for need in needs)}")


def check_tasks(*, devices: object, num_nodes: int, accelerator: str, environment: Mapping[str, str]) -> None:
    """Compares a trainer with what SLURM gives the job, one task a device; elsewhere there is nothing to say.

    Raises:
        UserError: tasks without their number a node, or another number than devices, nodes or GPUs.
    """
    if "SLURM_JOB_ID" not in environment:
        return
    nodes, tasks = int(environment.get("SLURM_NNODES", 1)), tasks_a_node(environment)
    gpus = None if accelerator == "cpu" else gpus_a_node(environment)
    if gpus is not None and gpus != tasks:
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


def tasks_a_node(environment: Mapping[str, str]) -> int:
    """Tasks on each node of the job.

    Raises:
        UserError: several tasks of which SLURM wasn't told how many go to a node.
    """
    if "SLURM_NTASKS_PER_NODE" in environment:
        return int(environment["SLURM_NTASKS_PER_NODE"])
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks > 1:
        raise UserError(
            f"--ntasks={tasks} doesn't say how many tasks a node has: submit with --ntasks-per-node"
        )
    return tasks


def gpus_a_node(environment: Mapping[str, str]) -> int | None:
    """GPUs of the job on this node; None where it asked for none, or SLURM doesn't know."""
    number = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(number) if number.isdecimal() and number != "0" else None


if __name__ == "__main__":
    main()
