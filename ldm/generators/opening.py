"""From a bundle and a command's options to a generator, once for each command."""

from inspect import Parameter, signature
from typing import Any

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.construct import PACKAGES, locate, own_packages
from ldm.generators.generator import Opened, check_options

LATENT_DIFFUSION = "ldm.generators.diffusion_bundle.open_latent_diffusion"  # of bundles that name none


def open_generator(bundle: Bundle, **options: Any) -> Opened:
    """The generator of a bundle: what its entry `generator` names, called with the bundle and options.

    Args:
        options: those that are None are the bundle's own: further keys of its entry `generator`, or defaults.

    Raises:
        UserError: a callable of a package that LDM_PACKAGES doesn't name; an option that it doesn't have.
        BundleError: a bundle that it can't generate from.
    """
    name, node = target_of(bundle), dict(bundle.config.get("generator", {}))
    node.pop("_target_", None)
    package = name.partition(".")[0]
    if package != "ldm" and package not in own_packages():
        raise UserError(
            f"bundle {bundle.path} generates by {name}, which is code of another package: if you have that"
            f" package and trust it, set {PACKAGES}={package}"
        )
    opener = locate(name, allowed=("ldm.generators.",))
    asked = node | {name: value for name, value in options.items() if value is not None}
    parameters = list(signature(opener).parameters.values())
    if all(each.kind is not Parameter.VAR_KEYWORD for each in parameters):  # else it checks them itself
        check_options(asked, [each.name for each in parameters[1:]], of=f"the generator of {bundle.path}")
    return Opened(generator=opener(bundle, **asked), bundle=bundle)


def target_of(bundle: Bundle) -> str:
    """The name of the callable that makes a bundle's generator."""
    return str(bundle.config.get("generator", {}).get("_target_", LATENT_DIFFUSION))
