"""DALL-E, CogView and CLIP-GEN as generators: prompts and seeds to codes, of which the best are decoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.codec import Frozen, PictureCodes, hash_of, in_chunks, to_float
from ldm.generators.code_bundle import CodeByCode, check_codes, open_network
from ldm.generators.generator import Progress, Source, Watch, check_options
from ldm.generators.token_loop import CHUNK, generate_codes
from ldm.io.fields import Fields
from ldm.models.autoregressive import CogViewTransformer, DalleTransformer, PrefixTransformer
from ldm.models.code_transformer import CodeTransformer
from ldm.randomness.seeds import SEED_LIMIT, key_of
from ldm.tokenizers import Tokenizer
from ldm.tokenizers.listed import CharacterTokenizer

MOST_CANDIDATES = 512  # DALL-E's number: a request of others can't ask for more time and memory than that


@dataclass(frozen=True, kw_only=True)
class ClipPair(Frozen):
    """Both towers of a CLIP and its tokenizer."""

    NETWORKS: ClassVar = ("text", "image")
    CHUNKS: ClassVar = (CHUNK, CHUNK)

    text: Any  # `ldm.models.clip.TextTransformer`; None: there is only a tokenizer
    image: Any  # `ldm.models.clip.VisionTransformer`; None with `text`
    tokenizer: Tokenizer

    @classmethod
    def open(cls, bundle: Bundle) -> "ClipPair":
        """The CLIP of a bundle. Raises BundleError where a tower or the tokenizer is missing."""
        text, tokenizer = bundle.texts()
        return cls(text=text, image=bundle.network("image_encoder"), tokenizer=tokenizer)

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return int(self.image.projection.out_features)

    @property
    def shape(self) -> tuple[int]:
        """The shape of a feature."""
        return (self.dim,)

    def image_fingerprint(self) -> str:
        """sha256 of everything that decides the feature of a picture."""
        return hash_of(self.image.state_dict(), repr((self.image.image_size, self.image.pixels)))

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "b e"]:
        """Unit features of texts."""
        tokens = self.tokenizer.encode(texts)
        return self.in_chunks(lambda rows: F.normalize(self.text(rows).pooled, dim=-1), tokens)

    def embed_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Unit features of pictures of any size."""
        return self.in_chunks(lambda rows: self.features(to_float(rows)), images)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Unit features of pictures in [-1, 1], with their gradient."""
        side = self.image.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        return F.normalize(self.image(images), dim=-1)


def load_clip(*, bundle: str) -> ClipPair:
    """The CLIP of the bundle at a path; raises as `ClipPair.open` does."""
    return ClipPair.open(Bundle.open(bundle))


@dataclass(frozen=True, kw_only=True)
class CodeGenerator(CodeByCode):
    """A network on codes with everything that generating pictures takes (see `generator.Generator`).

    Raises UserError for no candidates, an unknown ranking or one that the network lacks, or parts that don't
    go together.
    """

    OPTIONS: ClassVar = ("temperature", "top_k", "top_p", "scale", "candidates", "rerank", "negative")
    MOVED: ClassVar = ("net", "codes", "clip")
    starts_from_pictures: ClassVar = True  # some codes of the source picture are kept

    net: CodeTransformer
    clip: ClipPair  # its tokenizer reads the prompts
    candidates: int = 1  # pictures made of each prompt and seed, of which the best is kept
    rerank: str = "clip"  # how they are scored: one of RANKINGS
    negative: str = ""  # prompt that guidance moves away from

    def __post_init__(self) -> None:
        check_match(self.net, self.codes, self.clip)
        self.choice()  # refuses wrong options
        if not 1 <= self.candidates <= MOST_CANDIDATES:
            raise UserError(f"candidates={self.candidates} must lie in 1 to {MOST_CANDIDATES}")
        if self.rerank not in RANKINGS:
            raise UserError(f"rerank={self.rerank} is unknown: write {' or '.join(RANKINGS)}")
        if self.candidates > 1 and self.rerank == "clip" and self.clip.image is None:
            raise UserError(f"candidates={self.candidates} need a CLIP that ranks them: write 1")
        if self.rerank == "caption" and not isinstance(self.net, CogViewTransformer):
            raise UserError("rerank=caption needs CogView's network, which writes captions: take rerank=clip")

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        source: Source | None = None,
        watch: Watch | None = None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One picture for each prompt and seed; it does not depend on its batch, to the byte.

        Of a source the first rows of codes are kept, 1 - strength of them, or with a mask all codes that it
        doesn't touch.

        Raises UserError unless there is one seed per prompt, and one picture if there are any.
        """
        if len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a picture")
        many, choice = self.candidates, self.choice()
        texts = [prompt for prompt in prompts for _ in range(many)]
        codes = generate_codes(
            self.net,
            self.conditions(texts),
            [candidate_seed(seed, number) for seed in seeds for number in range(many)],
            choice,
            empty=self.empty(len(texts)) if choice.guided else None,
            known=None if source is None else self._known(source, count=len(prompts)),
            watch=None if watch is None else partial(self._report, watch),
        )
        made = self.codes.decode(codes)
        if many > 1:
            scores = RANKINGS[self.rerank](self, texts, codes, made).view(-1, many)
            made = made.unflatten(0, (-1, many))[torch.arange(len(scores)), scores.argmax(dim=1)]
        if source is None or source.redrawn is None:
            return made
        return torch.where(source.redrawn.to(made.device), made, source.images.to(made.device))

    def conditions(self, texts: Sequence[str]) -> Tensor:
        """The network's input for texts: token ids, or their features by CLIP."""
        if isinstance(self.net, PrefixTransformer):
            return self.clip.embed_texts(texts)
        return self.clip.tokenizer.encode(texts).to(self.codes.device)

    def empty(self, count: int) -> Tensor:
        """The condition that guidance moves away from: the negative prompt, or nothing."""
        if isinstance(self.net, PrefixTransformer) and not self.negative:
            return torch.zeros(count, self.clip.dim, device=self.codes.device)
        return self.conditions([self.negative] * count)

    def _known(self, source: Source, *, count: int) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """The codes of a source's pictures for all candidates, and which of them are kept."""
        source.check(count=count, size=self.size)
        if not 0 <= source.strength <= 1:
            raise UserError(f"strength={source.strength} must lie in [0, 1]")
        codes, grid = self.codes.encode_images(source.images), self.net.grid
        first = torch.arange(codes.shape[1], device=codes.device) < grid * round(grid * (1 - source.strength))
        kept = first.expand_as(codes)
        if source.redrawn is not None:
            pixels = source.redrawn.to(codes.device, torch.float32)  # pooling knows no bool
            kept = kept | (F.max_pool2d(pixels, self.size // grid) == 0).flatten(1)
        return codes.repeat_interleave(self.candidates, 0), kept.repeat_interleave(self.candidates, 0)

    def _report(self, watch: Watch, codes: Tensor, step: int) -> None:
        """Tells who watches; a preview shows the first candidates, and code 0 where there is none yet."""
        steps = -(-len(codes) // CHUNK) * self.net.length
        watch(Progress(step, steps, lambda: self.codes.decode(codes[:: self.candidates])))

    @property
    def tokenizer(self) -> Tokenizer:
        """CLIP's tokenizer, which reads the prompts."""
        return self.clip.tokenizer

    @property
    def nfe(self) -> int:
        """Evaluations of the network for a picture: one per code, candidate and condition."""
        return self.net.length * self.candidates * (1 + (self.scale != 1))


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a picture's candidate; the first has the picture's own, so one candidate is as none."""
    return seed if number == 0 else key_of(seed, "candidate", number) % SEED_LIMIT


def by_clip(one: CodeGenerator, texts: Sequence[str], codes: Tensor, pictures: Tensor) -> Float[Tensor, " b"]:
    """CLIP's cosine of each picture and its text (Ramesh et al. 2021, sec. 2.6)."""
    return (one.clip.embed_images(pictures) * one.clip.embed_texts(texts)).sum(dim=1)


def by_caption(
    one: CodeGenerator, texts: Sequence[str], codes: Tensor, pictures: Tensor
) -> Float[Tensor, " b"]:
    """The network's own log-likelihood of each text after its picture (Ding et al. 2021, sec. 3.2)."""
    net, tokens = cast(CogViewTransformer, one.net), one.conditions(texts)

    def score(rows: Tensor) -> Tensor:
        nats = net.caption_nats(rows[:, : tokens.shape[1]], rows[:, tokens.shape[1] :])
        assert nats.text is not None
        assert nats.counted is not None
        return -(nats.text * nats.counted).sum(dim=1)

    with torch.no_grad():
        return in_chunks(score, torch.cat([tokens, codes], dim=1), size=CHUNK, device=codes.device)


Ranking = Callable[[CodeGenerator, Sequence[str], Tensor, Tensor], Tensor]
RANKINGS: Mapping[str, Ranking] = {"clip": by_clip, "caption": by_caption}


def check_match(net: CodeTransformer, codes: PictureCodes, clip: ClipPair) -> None:
    """Refuses a network for other codes than a tokenizer's, or for other features or texts than CLIP's.

    Raises UserError with the numbers of both.
    """
    check_codes("backbone.grid", net.grid, codes.net.grid)
    check_codes("backbone.num_codes", net.num_codes, codes.net.num_codes)
    if isinstance(net, PrefixTransformer):
        if clip.dim != net.prefix_dim:
            there = f"but the features of CLIP have {clip.dim} numbers"
            raise UserError(f"backbone.prefix_dim={net.prefix_dim}, {there}")
        return
    for option, own in (("vocab_size", "vocab_size"), ("text_length", "context_length")):
        wanted, there = getattr(net, option), getattr(clip.tokenizer, own)
        if wanted != there:
            raise UserError(f"backbone.{option}={wanted}: set it to {there}, that of the captions' tokenizer")


def open_autoregressive(bundle: Bundle, **options: Any) -> CodeGenerator:
    """The generator of a bundle, with some of its `OPTIONS`.

    Raises BundleError for parts that are missing or don't go together, UserError for options that are
    refused.
    """
    check_options(options, CodeGenerator.OPTIONS, of=f"the generator of {bundle.path}")
    parts = open_network(bundle, CodeTransformer)
    return CodeGenerator.made({**parts, "clip": ClipPair.open(bundle)}, options)


def open_min_dalle(bundle: Bundle, **options: Any) -> CodeGenerator:
    """The generator of an imported minDALL-E, which has no CLIP; raises as `open_autoregressive` does."""
    tokenizer = bundle.tokenizer(lambda path: CharacterTokenizer.of(Fields.read(path)))
    clip = ClipPair(text=None, image=None, tokenizer=tokenizer)
    return CodeGenerator.made({**open_network(bundle, DalleTransformer), "clip": clip}, options)
