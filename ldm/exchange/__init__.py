"""Weights of other libraries: foreign files and folders become bundles, and bundles their formats.

| module                 | contents                                                         |
|------------------------|------------------------------------------------------------------|
| importing, exporting   | the ways in and out                                              |
| code_networks          | networks on codes of pictures, and their systems                 |
| image_tokenizers       | tokenizers of pictures                                           |
| folder, compvis, clip  | a folder of diffusers, a file of CompVis, the towers of a CLIP   |
| diffusers, schedulers  | configs of networks and schedulers against ours, both ways       |
| declared               | what a file declares about itself                                |
| imported               | networks compared with their files, and the record of an export  |
| weights, keymap, names | tensors of a file, and their names against ours, both ways       |

Whatever is missing, damaged, unsafe or not covered raises a UserError before a weight is read.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from ldm import UserError
from ldm.construct import NETWORKS, locate
from ldm.io.fields import MAX_DEPTH, MAX_WIDTH, Fields

LAYERS = ("num_layers", "blocks_per_level", "depth")  # options that count layers


def arguments(spec: Mapping[str, Any], *, target: str, what: str) -> dict[str, Any]:
    """The arguments of a `_target_` tree with their defaults; nested trees stay as they are.

    Raises UserError for a tree of another than the only target for which the other format has a place.
    """
    if spec.get("_target_") != target:
        raise UserError(
            f"{what} is {spec.get('_target_')}, which this format can't hold: only {target} can be exported"
        )
    parameters = inspect.signature(locate(target, allowed=NETWORKS)).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return defaults | {key: value for key, value in spec.items() if not key.startswith("_")}


def whole_numbers(fields: Fields, table: Mapping[str, tuple[str, int]], *, count: int = 1) -> dict[str, int]:
    """Our options from the whole numbers in a config.

    Args:
        table: option -> (their field, its default).
        count: of levels; theirs may have a number for each, of which ours is the first.
    """
    high = {option: MAX_DEPTH if option in LAYERS else MAX_WIDTH for option in table}
    return {
        option: fields.wholes(field, default, count=count, high=high[option])[0]
        for option, (field, default) in table.items()
    }
