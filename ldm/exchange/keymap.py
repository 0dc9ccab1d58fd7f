"""Renaming of weights by rules that work in both directions and use every tensor exactly once."""

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ldm import UserError

Tensors = list[Tensor]
Change = Callable[[Tensors], Tensors]

LISTED = 10  # problems that one message names
WRAPPERS = ("module.", "_orig_mod.", "model.", "ema.", "ema_model.")  # of DDP, torch.compile, trainers
OWN = "model.diffusion_model."  # CompVis' own prefix of a U-Net, which is not a wrapper


@dataclass(frozen=True)
class Rule:
    """Tensors of theirs that become tensors of ours; in names, `{}` is a number and `*` one component.

    All names of a rule have the same wildcards in the same order. `read` computes ours from theirs, `write`
    theirs from ours.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Change = list
    write: Change = list


def rename(theirs: str, ours: str) -> Rule:
    """A tensor under another name."""
    return Rule(theirs=(theirs,), ours=(ours,))


def renames(table: Mapping[str, str], theirs: str = "", ours: str = "") -> list[Rule]:
    """Layers under other names: an entry a -> b of the table renames `<theirs>a.*` to `<ours>b.*`."""
    return [rename(f"{theirs}{a}.*", f"{ours}{b}.*") for a, b in table.items()]


def merge(theirs: Sequence[str], ours: str, *, convolutions: bool = False) -> Rule:
    """Tensors of one shape stacked along their rows: separate q, k, v become a fused projection.

    With `convolutions` theirs are the weights of 1x1 convolutions.
    """

    def _read(tensors: Tensors) -> Tensors:
        stacked = torch.stack(tensors).flatten(0, 1)  # refuses unequal shapes, which cat does not
        return [_squeezed(stacked) if convolutions else stacked]

    def _write(tensors: Tensors) -> Tensors:
        return [part[:, :, None, None] if convolutions else part for part in tensors[0].chunk(len(theirs))]

    return Rule(theirs=tuple(theirs), ours=(ours,), read=_read, write=_write)


def linear(theirs: str, ours: str) -> Rule:
    """The weight of a 1x1 convolution as that of a linear layer."""
    return Rule((theirs,), (ours,), lambda t: [_squeezed(t[0])], lambda t: [t[0][:, :, None, None]])


def transpose(theirs: str, ours: str) -> Rule:
    """A matrix that theirs have as (in, out) and ours as (out, in)."""
    return Rule((theirs,), (ours,), read=lambda t: [t[0].T], write=lambda t: [t[0].T])


def _squeezed(weight: Tensor) -> Tensor:
    return weight.squeeze(3).squeeze(2)  # a larger kernel stays, so that its shape is refused


def reverse(rules: Iterable[Rule]) -> list[Rule]:
    """The rules in the other direction, from ours to theirs."""
    return [Rule(theirs=rule.ours, ours=rule.theirs, read=rule.write, write=rule.read) for rule in rules]


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shape of each tensor; the state may be on the meta device."""
    return {name: tensor.shape for name, tensor in state.items()}


def translate(
    state: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    expected: Mapping[str, torch.Size] | None = None,
    drop: Iterable[str] = (),
) -> dict[str, Tensor]:
    """`state` under our names.

    Args:
        expected: names and shapes that the result must have; None on the way from ours to theirs.
        drop: globs of tensors to leave out.

    Raises:
        UserError: tensors are missing, unexpected, claimed by two rules or of the wrong shape. It names ten
            of them, and for an unexpected one the nearest missing name.
    """
    kept = {name: x for name, x in state.items() if not any(fnmatchcase(name, glob) for glob in drop)}
    groups, problems = _claimed(kept, rules)
    result: dict[str, Tensor] = {}
    for (rule, wildcards), parts in groups.items():
        theirs, ours = ([_fill(name, wildcards) for name in names] for names in (rule.theirs, rule.ours))
        if absent := [name for name in theirs if name not in parts]:
            problems += [f"missing {name}" for name in absent]
            continue
        try:
            outputs = rule.read([parts[name] for name in theirs])
        except (RuntimeError, IndexError):
            sizes = ", ".join(str(tuple(parts[name].shape)) for name in theirs)
            problems.append(f"shapes {sizes} do not make {ours[0]}")
            continue
        problems += [f"made twice {name}" for name in ours if name in result]
        result |= zip(ours, outputs, strict=True)
    if expected is not None:
        problems += _differences(result, expected)
    if problems:
        raise UserError(_sentence(problems, _wanted(rules, (expected or {}).keys() - result.keys())))
    return result


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name without a training's wrappers: `_orig_mod` anywhere, and WRAPPERS before every name.

    Two names that become one raise UserError.
    """
    short = {name: ".".join(part for part in name.split(".") if part != "_orig_mod") for name in names}
    while short and not any(name.startswith(OWN) for name in short.values()):
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in short.values())), None)
        if prefix is None:
            break
        short = {name: inner.removeprefix(prefix) for name, inner in short.items()}
    seen: dict[str, str] = {}
    for name, inner in short.items():
        if seen.setdefault(inner, name) != name:
            raise UserError(f"tensors {seen[inner]!r} and {name!r} are both {inner!r}: save one of them")
    return short


def _claimed(
    state: Mapping[str, Tensor], rules: Sequence[Rule]
) -> tuple[dict[tuple[Rule, tuple[str, ...]], dict[str, Tensor]], list[str]]:
    """Tensors by the rule and wildcards that claim them, and a problem for each that not just one claims."""
    patterns = [(rule, _pattern(name)) for rule in rules for name in rule.theirs]
    groups: dict[tuple[Rule, tuple[str, ...]], dict[str, Tensor]] = defaultdict(dict)
    problems = []
    for name, tensor in state.items():
        claims = [(rule, match.groups()) for rule, pattern in patterns if (match := pattern.fullmatch(name))]
        if len(claims) == 1:
            groups[claims[0]][name] = tensor
        else:
            problems.append(f"claimed by {len(claims)} rules {name}" if claims else f"unexpected {name}")
    return groups, problems


def _differences(result: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> list[str]:
    return [
        *(f"missing {name}" for name in expected.keys() - result.keys()),
        *(f"unexpected {name}" for name in result.keys() - expected.keys()),
        *(
            f"shape of {name} is {tuple(tensor.shape)}, wanted {tuple(expected[name])}"
            for name, tensor in result.items()
            if name in expected and tensor.shape != expected[name]
        ),
    ]


def _sentence(problems: list[str], wanted: list[str]) -> str:
    """The first problems and the number of the others; an unexpected name with the nearest wanted one."""
    listed = []
    for problem in sorted(problems)[:LISTED]:
        kind, _, name = problem.partition(" ")
        near = difflib.get_close_matches(name, wanted, n=1, cutoff=0.8) if kind == "unexpected" else []
        listed.append(problem + "".join(f" (did you mean {each}?)" for each in near))
    rest = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return f"The weights do not fit, {len(problems)} problems: {'; '.join(listed)}{rest}."


def _wanted(rules: Sequence[Rule], missing: Iterable[str]) -> list[str]:
    """Their names for missing tensors of ours."""
    patterns = [(rule, _pattern(name)) for rule in rules for name in rule.ours]
    found = ((rule, pattern.fullmatch(name)) for name in missing for rule, pattern in patterns)
    return sorted(_fill(name, match.groups()) for rule, match in found if match for name in rule.theirs)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)").replace(r"\*", r"([^.]+)"))


def _fill(name: str, wildcards: Sequence[str]) -> str:
    """`name` with its wildcards replaced in order."""
    values = iter(wildcards)
    return re.sub(r"\{\}|\*", lambda _: next(values), name)
