"""Strict renaming of weights: a table of rules, every tensor used exactly once, in both directions."""

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

LISTED = 10  # problems that one sentence names
WRAPPERS = ("module.", "_orig_mod.", "model.", "ema.", "ema_model.")  # of DDP, torch.compile, trainers
OWN = "model.diffusion_model."  # CompVis' own prefix of a U-Net, which is not a wrapper


def unchanged(tensors: Tensors) -> Tensors:
    """The tensors as they are."""
    return tensors


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Tensors of their state that become tensors of ours; ``{}`` in a name is a number, ``*`` one component.

    All names of a rule hold the same wildcards in the same order. ``read`` makes ours from theirs, ``write``
    theirs from ours.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Change = unchanged
    write: Change = unchanged

    def reversed(self) -> "Rule":
        """The same rule from ours to theirs."""
        return Rule(theirs=self.ours, ours=self.theirs, read=self.write, write=self.read)


def rename(theirs: str, ours: str) -> Rule:
    """A tensor under another name."""
    return Rule(theirs=(theirs,), ours=(ours,))


def renames(table: Mapping[str, str], theirs: str = "", ours: str = "") -> list[Rule]:
    """Layers under other names: an entry `a: b` of the table renames `{theirs}a.*` to `{ours}b.*`."""
    return [rename(f"{theirs}{a}.*", f"{ours}{b}.*") for a, b in table.items()]


def merge(theirs: Sequence[str], ours: str, *, convolutions: bool = False) -> Rule:
    """Equal tensors stacked along their rows into one of ours: separate q, k, v into a fused projection.

    With ``convolutions`` theirs are the weights of 1x1 convolutions.
    """
    parts = len(theirs)

    def read(tensors: Tensors) -> Tensors:
        stacked = torch.stack(tensors).flatten(0, 1)  # refuses unequal shapes, which cat does not
        return [stacked.squeeze(3).squeeze(2) if convolutions else stacked]

    def write(tensors: Tensors) -> Tensors:
        return [part[:, :, None, None] if convolutions else part for part in tensors[0].chunk(parts)]

    return Rule(theirs=tuple(theirs), ours=(ours,), read=read, write=write)


def linear(theirs: str, ours: str) -> Rule:
    """A 1x1 convolution's weight as a linear layer's."""
    return Rule(
        theirs=(theirs,),
        ours=(ours,),
        read=lambda tensors: [tensors[0].squeeze(3).squeeze(2)],  # leaves a larger kernel as it is
        write=lambda tensors: [tensors[0][:, :, None, None]],
    )


def transpose(theirs: str, ours: str) -> Rule:
    """A matrix kept as (in, out) where ours is (out, in)."""
    return Rule(theirs=(theirs,), ours=(ours,), read=lambda t: [t[0].T], write=lambda t: [t[0].T])


def reverse(rules: Iterable[Rule]) -> list[Rule]:
    """The table that leads back."""
    return [rule.reversed() for rule in rules]


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shape of each tensor, as :func:`translate` wants it; a meta-device network's state will do."""
    return {name: tensor.shape for name, tensor in state.items()}


def translate(
    state: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    expected: Mapping[str, torch.Size] | None = None,
    drop: Iterable[str] = (),
) -> dict[str, Tensor]:
    """``state`` under the names, and in the shapes, of ``expected``; None where only the way back can tell.

    ``drop`` names tensors to leave out (``*`` matches anything). Raises one UserError that lists the tensors
    that are missing, unexpected, claimed by two rules or of the wrong shape: ten of them and the number of
    the others, an unexpected one with the nearest name that is missing.
    """
    problems: list[str] = []
    groups = _group(state, rules, tuple(drop), problems)
    result: dict[str, Tensor] = {}
    for (index, wildcards), parts in groups.items():
        rule = rules[index]
        absent = [_fill(name, wildcards) for i, name in enumerate(rule.theirs) if i not in parts]
        if absent:
            problems += [f"missing {name}" for name in absent]
            continue
        inputs = [parts[i] for i in range(len(rule.theirs))]
        try:
            outputs = rule.read(inputs)
        except (RuntimeError, IndexError):
            sizes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
            problems.append(f"shapes {sizes} do not make {_fill(rule.ours[0], wildcards)}")
            continue
        for name, tensor in zip((_fill(name, wildcards) for name in rule.ours), outputs, strict=True):
            if name in result:
                problems.append(f"made twice {name}")
            result[name] = tensor
    if expected is not None:
        problems += _compare(result, expected)
    if problems:
        raise UserError(_sentence(problems, _wanted(rules, (expected or {}).keys() - result.keys())))
    return result


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name without what a training wraps around a network.

    That is `_orig_mod` of torch.compile anywhere, and a prefix out of WRAPPERS that every name has.

    Raises:
        UserError: two names that become one.
    """
    short = {name: ".".join(part for part in name.split(".") if part != "_orig_mod") for name in names}
    while short and not any(name.startswith(OWN) for name in short.values()):
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in short.values())), None)
        if prefix is None:
            break
        short = {name: inner.removeprefix(prefix) for name, inner in short.items()}
    seen: dict[str, str] = {}
    for name, inner in short.items():
        if inner in seen:
            raise UserError(f"tensors {seen[inner]!r} and {name!r} are both {inner!r}: save one of them")
        seen[inner] = name
    return short


def _sentence(problems: list[str], wanted: Iterable[str]) -> str:
    """The first problems, the count of the others, and for an unexpected name the nearest wanted one."""
    known = sorted(wanted)
    listed = []
    for problem in sorted(problems)[:LISTED]:
        kind, _, name = problem.partition(" ")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8) if kind == "unexpected" else []
        listed.append(problem + "".join(f" (did you mean {each}?)" for each in near))
    rest = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return f"The weights do not fit, {len(problems)} problems: {'; '.join(listed)}{rest}."


def _wanted(rules: Sequence[Rule], missing: Iterable[str]) -> list[str]:
    """Their names of the tensors of ours that are missing."""
    patterns = [(rule, _pattern(name)) for rule in rules for name in rule.ours]
    found = ((rule, pattern.fullmatch(name)) for name in missing for rule, pattern in patterns)
    return [_fill(name, match.groups()) for rule, match in found if match for name in rule.theirs]


def _group(
    state: Mapping[str, Tensor], rules: Sequence[Rule], drop: tuple[str, ...], problems: list[str]
) -> dict[tuple[int, tuple[str, ...]], dict[int, Tensor]]:
    """Tensors by the rule and wildcards that claim them, then by their place in the rule."""
    patterns = [(i, j, _pattern(name)) for i, rule in enumerate(rules) for j, name in enumerate(rule.theirs)]
    groups: dict[tuple[int, tuple[str, ...]], dict[int, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        if any(fnmatchcase(name, glob) for glob in drop):
            continue
        claims = [(i, j, match.groups()) for i, j, pattern in patterns if (match := pattern.fullmatch(name))]
        if len(claims) != 1:
            problems.append(f"claimed by {len(claims)} rules {name}" if claims else f"unexpected {name}")
            continue
        i, j, wildcards = claims[0]
        groups[i, wildcards][j] = tensor
    return groups


def _compare(result: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> list[str]:
    problems = [f"missing {name}" for name in expected.keys() - result.keys()]
    problems += [f"unexpected {name}" for name in result.keys() - expected.keys()]
    problems += [
        f"shape of {name} is {tuple(tensor.shape)}, wanted {tuple(expected[name])}"
        for name, tensor in result.items()
        if name in expected and tensor.shape != expected[name]
    ]
    return problems


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)").replace(r"\*", r"([^.]+)"))


def _fill(name: str, wildcards: Sequence[str]) -> str:
    """``name`` with its wildcards replaced in order."""
    values = iter(wildcards)
    return re.sub(r"\{\}|\*", lambda _: next(values), name)
