"""Stage of the systems that generate code after code: DALL-E, CogView and CLIP-GEN."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError, send
from ldm.checkpoints.bundle import Part
from ldm.codec import PictureCodes
from ldm.data.codes import CodeBatch
from ldm.generators.autoregressive import ClipPair, CodeGenerator
from ldm.generators.code_bundle import write_parts
from ldm.generators.token_loop import Choice
from ldm.models.autoregressive import CogViewTransformer, PrefixTransformer
from ldm.models.code_transformer import CodeTransformer, Nats, cross_entropy
from ldm.randomness import keyed
from ldm.randomness.uniforms import uniforms
from ldm.stages.stage import ENDLESS, ConditionedStage, Weights, check_share
from ldm.tokenizers import Tokenizer

OPENER = "ldm.generators.autoregressive.open_autoregressive"
Loss = Callable[[Nats], Tensor]  # likelihoods of b sequences -> their losses, (b,)


def apart(nats: Nats, *, text: float) -> Float[Tensor, " b"]:
    """DALL-E's loss: the means of text and of codes, the text's with a share of `text`, 1/8 there."""
    own = nats.image.mean(dim=1)
    return own if nats.text is None else text * mean_of_text(nats) + (1 - text) * own


def together(nats: Nats, *, text_weight: float = 1.0) -> Float[Tensor, " b"]:
    """CogView's loss: the mean over all tokens of a sequence, the text's with a weight.

    By sequence, not by batch as in its released code: there, a sample's share depends on its batch.
    """
    assert nats.text is not None
    weights = text_weight * (torch.ones_like(nats.text) if nats.counted is None else nats.counted)
    total = nats.image.sum(dim=1) + (weights * nats.text).sum(dim=1)
    return total / (nats.image.shape[1] + weights.sum(dim=1))


def mean_of_text(nats: Nats) -> Float[Tensor, " b"]:
    """The mean over the tokens of each text that count."""
    assert nats.text is not None
    counted = torch.ones_like(nats.text) if nats.counted is None else nats.counted
    return (nats.text * counted).sum(dim=1) / counted.sum(dim=1)


class KeyedDropout:
    """Dropout as a function of the samples' positions: a resumed training has the same zeros."""

    def __init__(self, rate: float, *, seed: int, positions: Tensor) -> None:
        self.rate, self.seed, self.positions = rate, seed, positions

    def __call__(self, values: Tensor, name: str) -> Tensor:
        """Values with zeros in some places; `name` is that of the place in the network."""
        key = {"seed": self.seed, "positions": self.positions, "stream": f"dropout/{name}"}
        kept = uniforms(values.shape[1:], **key, device=values.device) >= self.rate
        return values * kept / (1 - self.rate)


class AutoregressiveStage(ConditionedStage):
    """Trains a network to predict codes, and the text before them if it reads any.

    A network that reads token ids is given captions. One that reads CLIP's features (CLIP-GEN) is given those
    of the pictures, and no caption is read in training.

    Args:
        codes: the tokenizer of pictures, frozen.
        clip: frozen: its tokenizer reads captions, its towers make features and rank candidates.
        loss: of a sequence's likelihoods.
        choice, candidates, rerank: how pictures are sampled while training, and by default from the bundle.
        dropout: of embeddings and branches.
        captioning: share of samples that are turned round, caption after picture (CogView), to rank by.
        embedding_weight: of CLIP-GEN's term, see `embedding_error`.
        others: see `ConditionedStage`.

    Raises UserError for shares outside [0, 1], and parts that don't go together.
    """

    def __init__(  # one parameter per key of conf/model/autoregressive.yaml
        self,
        *,
        net: CodeTransformer,
        codes: PictureCodes,
        clip: ClipPair,
        loss: Loss,
        choice: Choice,
        candidates: int = 1,
        rerank: str = "clip",
        dropout: float = 0.0,
        captioning: float = 0.0,
        embedding_weight: float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__(net=net, **others)
        check_share("captioning", captioning)
        if not 0 <= dropout < 1:
            raise UserError(f"{dropout=} must lie in [0, 1)")
        if captioning and not isinstance(net, CogViewTransformer):
            raise UserError(f"{captioning=} needs CogView's network: leave it at 0")
        if embedding_weight and not isinstance(net, PrefixTransformer):
            raise UserError(f"{embedding_weight=} needs CLIP-GEN's network: leave it at 0")
        self.codes, self.clip, self.sequence_loss = codes, clip, loss
        self.sampling = {**asdict(choice), "candidates": candidates, "rerank": rerank}
        self.dropout, self.captioning, self.embedding_weight = dropout, captioning, embedding_weight
        self.embedder = clip if self.reads_pictures else None  # for the data: its features go into batches
        # no caption is read in training: none is cut
        self.tokenizer: Tokenizer | None = None if self.reads_pictures else clip.tokenizer
        self.generator()  # refuses parts that don't go together and wrong options before the training

    @property
    def reads_pictures(self) -> bool:
        """Whether the condition in training is CLIP's feature of the picture."""
        return isinstance(self.net, PrefixTransformer)

    def on_fit_start(self) -> None:
        """Moves the frozen networks, which Lightning does not know of."""
        self.codes.to(self.device)
        self.clip.to(self.device)

    def loss(self, batch: CodeBatch) -> Tensor:
        """Mean loss of a batch: sequences that are turned round are another call of the network."""
        positions, codes = batch["position"], batch["codes"]
        turned = self._chosen(self.captioning, positions, "turn")
        dropped = self._chosen(self.caption_drop, positions, "drop") & ~turned  # these are to write theirs
        condition = self._condition(batch, dropped)
        losses = codes.new_zeros(len(codes), dtype=torch.float32)
        for rows, compute in ((~turned, self._sequence), (turned, self._caption)):
            if rows.any():
                drop = self._dropout(positions[rows])
                own = send(rows.nonzero()[:, 0], codes.device)  # for a mask the host would wait for its sum
                losses = losses.index_copy(0, own, compute(condition[own], codes[own], drop))
        return losses.mean()

    def _sequence(self, condition: Tensor, codes: Tensor, drop: KeyedDropout | None) -> Float[Tensor, " b"]:
        if not self.embedding_weight:
            return self.sequence_loss(self.net.nats(condition, codes, drop))
        logits = self.net.logits(condition, codes, drop)
        own = self.sequence_loss(Nats(image=cross_entropy(logits, codes)))
        return own + self.embedding_weight * embedding_error(logits, condition, self.codes, self.clip)

    def _caption(self, condition: Tensor, codes: Tensor, drop: KeyedDropout | None) -> Float[Tensor, " b"]:
        return mean_of_text(cast(CogViewTransformer, self.net).caption_nats(condition, codes, drop))

    def _condition(self, batch: CodeBatch, dropped: Tensor) -> Tensor:
        """Token ids of captions, or CLIP's features of the pictures; the dropped ones are empty."""
        if self.reads_pictures:
            return batch["embedding"] * send(~dropped, self.device)[:, None]
        kept = zip(batch["captions"], dropped.tolist(), strict=True)
        texts = ["" if without else caption for caption, without in kept]
        return send(self.clip.tokenizer.encode(texts), self.device)

    def _chosen(self, share: float, positions: Tensor, stream: str) -> Tensor:
        """Which samples are among a share of all: bool, (b,), on the host."""
        if not share:
            return torch.zeros(len(positions), dtype=torch.bool)
        return keyed.uniform(seed=self.seed, positions=positions, stream=stream) < share

    def _dropout(self, positions: Tensor) -> KeyedDropout | None:
        return KeyedDropout(self.dropout, seed=self.seed, positions=positions) if self.dropout else None

    def validation_step(self, batch: CodeBatch, batch_idx: int) -> None:
        """Loss of the EMA and nats per code and token; for CLIP-GEN also given the text's feature.

        `val/loss_fixed` is the nats per code: what systems on codes compare by.

        The difference of `val/image_from_text` and `val/image` is the modality gap in nats per code.
        """
        net, codes = self.best, batch["codes"]
        condition = self._condition(batch, torch.zeros(len(codes), dtype=torch.bool))
        nats = net.nats(condition, codes)
        scores = {"val/loss": self.sequence_loss(nats).mean(), "val/image": nats.image.mean()}
        if nats.text is not None:
            scores["val/text"] = mean_of_text(nats).mean()
        if self.captioning:
            scores["val/caption"] = mean_of_text(net.caption_nats(condition, codes)).mean()
        if self.reads_pictures:
            from_text = net.nats(self.clip.embed_texts(batch["captions"]), codes)
            scores["val/image_from_text"] = from_text.image.mean()
        self._log_fixed(nats.image.mean(dim=1), batch["index"])
        self.log_dict(scores, batch_size=len(codes), sync_dist=True, prog_bar=True)

    def example_batch(self, count: int, *, size: int) -> CodeBatch:
        """Random codes and features with captions that fill any context."""
        numbers = torch.arange(count)
        return CodeBatch(
            codes=torch.randint(self.net.num_codes, (count, self.net.length)),
            captions=[ENDLESS] * count,
            embedding=F.normalize(torch.randn(count, self.clip.dim), dim=1),
            position=numbers,
            index=numbers,
        )

    def frozen(self) -> dict[str, nn.Module]:
        """The tokenizer of pictures and the towers of CLIP."""
        towers = {"text encoder": self.clip.text, "image encoder": self.clip.image}
        return {"image tokenizer": self.codes.net, **towers}

    def generator(self) -> CodeGenerator:
        """The EMA of the network as it would be sampled now."""
        return CodeGenerator(net=self.best, codes=self.codes, clip=self.clip, **self.sampling)

    def write(self, path: Path, state: Weights, *, config: Mapping[str, Any], data: object) -> None:
        """The EMA of the network, the frozen parts as they came, and how to sample."""
        write_parts(
            path,
            Part(spec=config["backbone"], state=state),
            config=config,
            codes=self.codes,
            settings={"generator": {"_target_": OPENER, **self.generator().settings()}},
        )


def embedding_error(
    logits: Float[Tensor, "b n k"], features: Float[Tensor, "b e"], codes: PictureCodes, clip: ClipPair
) -> Float[Tensor, " b"]:
    """Mean squared distance of CLIP's unit features of pictures and of the likeliest codes, decoded.

    That is 2 (1 - cos) / e. The codes are hard, and their gradient is that of the softmax (CLIP-GEN's code).
    For a dropped feature, which is 0, it is a constant.
    """
    shares = logits.float().softmax(dim=-1)
    hard = F.one_hot(shares.argmax(dim=-1), shares.shape[-1]).to(shares)
    one_hot = hard.detach() + (shares - shares.detach())
    (quantizer,) = codes.net.quantizers()
    vectors = quantizer.lookup(torch.arange(shares.shape[-1], device=logits.device)[None, None])[0, :, 0].T
    grid = codes.net.grid
    values = rearrange(one_hot @ vectors, "b (h w) d -> b d h w", h=grid, w=grid)
    seen = clip.features(codes.net.pictures(codes.net.render([values])))
    return (seen - F.normalize(features.float(), dim=-1)).square().mean(dim=-1)
