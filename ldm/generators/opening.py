"""From a bundle and a command's options to a generator, once for each command."""

from inspect import Parameter, signature
from typing import Any

from ldm.checkpoints.bundle import Bundle
from ldm.construct import locate
from ldm.generators.generator import Opened, check_options

LATENT_DIFFUSION = "ldm.generators.diffusion_bundle.open_latent_diffusion"  # of bundles that name none
ALLOWED = ("ldm.generators.",)  # and what LDM_PACKAGES adds


def open_generator(bundle: Bundle, **options: Any) -> Opened:
    """The generator of a bundle: what its entry `generator` names, called with the bundle and options.

    Args:
        options: those that are None are the bundle's own: further keys of its entry `generator`, or defaults.

    Raises:
        UserError: a callable that may not be used, see `ldm.packages`; an option that it doesn't have.
        BundleError: a bundle that it can't generate from.
    """
    node = dict(bundle.config.get("generator") or {"_target_": LATENT_DIFFUSION})
    opener = locate(node.pop("_target_", None), allowed=ALLOWED)
    given = {name: value for name, value in options.items() if value is not None}
    parameters = list(signature(opener).parameters.values())
    if all(each.kind is not Parameter.VAR_KEYWORD for each in parameters):  # else it checks them itself
        check_options(given, [each.name for each in parameters[1:]], of=f"the generator of {bundle.path}")
    return Opened(generator=opener(bundle, **(node | given)), bundle=bundle)
