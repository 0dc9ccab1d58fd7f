"""Facts about CLIP-GEN's and minDALL-E's files: the same outputs, every weight used once."""

import json

import open_clip
import pytest
import torch
from tokenizers.implementations import CharBPETokenizer
from torch import nn
from torch.testing import assert_close

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.construct import construct
from ldm.exchange import code_networks
from ldm.exchange.image_tokenizers import vqgan_rules
from ldm.exchange.importing import locate
from ldm.exchange.keymap import reverse, translate
from ldm.generators.generator import open_generator
from ldm.models.autoregressive import DalleTransformer
from ldm.models.picture_tokenizers import Trunk, VQAutoencoder
from ldm.models.quantizers import VectorQuantizer

WIDTH, DEPTH, CODES, GRID = 128, 2, 24, 4
SIDE = 16  # of the pictures: codes of a quarter of it


def random(net: nn.Module) -> nn.Module:
    """No weight at a constant that a wrong map would not change."""
    torch.manual_seed(4)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval().requires_grad_(False)


class Block(nn.Module):
    """torch's own pre-norm layer, with the mask that the files hold."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(
            WIDTH, WIDTH // 64, 4 * WIDTH, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.register_buffer("mask", torch.ones(GRID**2, GRID**2, dtype=torch.bool).triu(1))

    def forward(self, x):
        return self.encoder(x, self.mask[: x.shape[1], : x.shape[1]])


class Prefix(nn.Module):
    """Codes after a vector, from torch's parts, under the names in CLIP-GEN's file."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb, self.cond_proj = nn.Embedding(CODES, WIDTH), nn.Linear(8, WIDTH)
        self.pos_emb = nn.Parameter(torch.zeros(1, GRID**2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CODES)

    def forward(self, codes, vector):
        x = torch.cat([self.cond_proj(vector)[:, None], self.tok_emb(codes)], dim=1)
        return self.head(self.norm(self.blocks(x + self.pos_emb[:, : x.shape[1]])))


class Resnet(nn.Module):
    def __init__(self, before, width) -> None:
        super().__init__()
        norm, conv = nn.GroupNorm, nn.Conv2d
        self.block = nn.Sequential(
            *(norm(32, before), nn.SiLU(), conv(before, width, 3, padding=1)),
            *(norm(32, width), nn.SiLU(), nn.Dropout(0.0), conv(width, width, 3, padding=1)),
        )
        if before != width:
            self.shortcut = conv(before, width, 1)

    def forward(self, x):
        return self.block(x) + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width) -> None:
        super().__init__()
        self.norm, self.attn = nn.GroupNorm(32, width), nn.MultiheadAttention(width, 1, batch_first=True)

    def forward(self, x):
        rows = self.norm(x).flatten(2).mT
        return x + self.attn(rows, rows, rows, need_weights=False)[0].mT.unflatten(2, x.shape[2:])


class Resample(nn.Module):
    def __init__(self, width, *, up) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(width, width, 3, padding=int(up), stride=1 if up else 2)

    def forward(self, x):
        x = nn.functional.interpolate(x, scale_factor=2.0) if self.up else nn.functional.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Half(nn.Module):
    """Encoder or decoder: 32, 32 and 64 channels, attention at the last level."""

    def __init__(self, *, up) -> None:
        super().__init__()
        widths, layers, before = [32, 32, 64], [], 64 if up else 32
        for number, width in enumerate(reversed(widths) if up else widths):
            for _ in range(2 if up else 1):
                layers.append(Resnet(before, width))
                layers += [Attention(width)] if number == (0 if up else 2) else []
                before = width
            layers += [Resample(width, up=up)] if number < 2 else []
        setattr(self, "up" if up else "down", nn.Sequential(*layers))
        self.mid = nn.Sequential(Resnet(64, 64), Attention(64), Resnet(64, 64))
        self.conv_in = nn.Conv2d(6 if up else 3, 64 if up else 32, 3, padding=1)
        ends = [nn.Conv2d(before, 3 if up else 6, 3, padding=1), *([] if up else [nn.Conv2d(6, 6, 1)])]
        self.final = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), *ends)
        if up:
            self.quant_conv_in = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        if hasattr(self, "up"):
            return self.final(self.up(self.mid(self.conv_in(self.quant_conv_in(x)))))
        return self.final(self.mid(self.down(self.conv_in(x))))


class Vqgan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Half(up=False), Half(up=True)
        self.quantizer, self.discriminator = nn.Module(), nn.Linear(2, 2)
        self.quantizer.embedding = nn.Embedding(CODES, 6)


def saved(net, path):
    """A file as CLIP-GEN's trainings leave it."""
    torch.save({"model": net.state_dict(), "optimizer": {"state": {}, "lr": 1.0}, "epoch": 3}, path)
    return path


def built(part):
    net = construct(part.spec)
    net.load_state_dict(dict(part.state))
    return net.eval()


def test_clip_gens_transformer_has_the_same_logits(tiny, tmp_path):
    theirs = random(Prefix())
    found = tiny(saved(theirs, tmp_path / "gpt.pt"))
    ours, codes = built(found.parts["backbone"]), torch.randint(CODES, (3, GRID**2))
    vector = nn.functional.normalize(torch.randn(3, 8), dim=1)
    assert_close(ours.logits(vector, codes), theirs(codes[:, :-1], vector), rtol=1e-5, atol=1e-5)
    assert found.left_out == ["blocks.*.mask"]


def test_clip_gens_tokenizer_has_the_same_codes_and_pictures(tiny, tmp_path):
    theirs, images = random(Vqgan()), 2 * torch.rand(2, 3, SIDE, SIDE) - 1
    found = tiny(saved(theirs, tmp_path / "vqgan.pt"))
    ours = built(found.parts["image_tokenizer"])
    ours.size = SIDE  # its convolutions take any
    ours.levels = (ours.levels[0]._replace(grid=GRID),)
    features, table = theirs.encoder(images), theirs.quantizer.embedding.weight
    codes = torch.cdist(features.flatten(2).mT, table[None]).argmin(-1)
    assert torch.equal(ours.encode(images), codes)
    values = table[codes].mT.unflatten(2, (GRID, GRID))
    assert_close(ours.decode(codes), theirs.decoder(values), rtol=1e-4, atol=1e-5)
    assert found.left_out == ["discriminator.*"]


def test_every_weight_of_min_dalle_is_used_once(tiny, tmp_path):
    sizes = {"vocab_size": 20, "text_length": 6, "num_codes": CODES, "grid": GRID, "width": WIDTH}
    options = {"sparse": False, "axial": False, "own_pads": False}
    ours = random(DalleTransformer(**sizes, depth=DEPTH, num_heads=2, **options))
    state = translate(ours.state_dict(), reverse(code_networks.text_rules()))
    assert {"tok_emb_txt.weight", "blocks.1.attn.key.bias", "ln_f.weight", "head_img.weight"} <= state.keys()
    own = [state[f"blocks.0.attn.{name}.weight"] for name in ("query", "key", "value")]
    assert torch.equal(torch.cat(own), ours.trunk.layers[0].attention.qkv.weight)
    torch.save({"state_dict": state}, tmp_path / "stage2.ckpt")
    found = built(tiny(tmp_path / "stage2.ckpt").parts["backbone"])
    texts, codes = torch.randint(20, (2, 6)), torch.randint(CODES, (2, GRID**2))
    assert torch.equal(found.logits(texts, codes), ours.logits(texts, codes))
    torch.save({"state_dict": state | {"extra.weight": torch.zeros(2, 2)}}, tmp_path / "more.ckpt")
    with pytest.raises(UserError, match=r"unexpected extra\.weight"):
        tiny(tmp_path / "more.ckpt")


CAPTIONS = ["a red apple", "An old tower by the sea", "the cat's hat, red!", "three cats and a hat"]


@pytest.fixture
def min_dalle(tmp_path):
    """minDALL-E's folder: both stages under their names, and a vocabulary of the captions' characters."""
    folder = tmp_path / "min_dalle"
    (folder / "tokenizer").mkdir(parents=True)
    captions = CharBPETokenizer(unk_token="[UNK]", lowercase=True)
    captions.train_from_iterator(CAPTIONS, vocab_size=60, special_tokens=["[PAD]", "[UNK]"])
    captions.save_model(str(folder / "tokenizer"), "bpe-16k")
    attends = [False, False, True]
    trunk = Trunk(channels=32, multipliers=[1, 1, 1], blocks_per_level=1, level_attention=attends)
    codebook = VectorQuantizer(num_codes=CODES, dim=6, learned=True, codebook_weight=0.25)
    stage1 = random(VQAutoencoder(trunk=trunk, features=6, quantizer=codebook, size=SIDE))
    names = reverse(vqgan_rules(attends, is_gumbel=False))
    torch.save({"state_dict": translate(stage1.state_dict(), names)}, folder / "stage1_last.ckpt")
    sizes = {"vocab_size": 64, "text_length": 8, "num_codes": CODES, "grid": GRID, "width": WIDTH}
    options = {"sparse": False, "axial": False, "own_pads": False}
    stage2 = random(DalleTransformer(**sizes, depth=1, num_heads=2, **options))
    names = reverse(code_networks.text_rules())
    torch.save({"state_dict": translate(stage2.state_dict(), names)}, folder / "stage2_last.ckpt")
    return folder


def test_min_dalles_captions_have_the_ids_of_its_own_tokenizer(tiny, min_dalle, tmp_path):
    """The released code: CharBPETokenizer with lower case, cut and padded to the context by the library."""
    files = [str(min_dalle / "tokenizer" / f"bpe-16k-{name}") for name in ("vocab.json", "merges.txt")]
    theirs = CharBPETokenizer.from_file(*files, unk_token="[UNK]", lowercase=True)
    theirs.add_special_tokens(["[PAD]"])
    theirs.enable_padding(length=8, pad_id=theirs.token_to_id("[PAD]"))
    theirs.enable_truncation(max_length=8)
    texts = [*CAPTIONS, "", "x", "ÉTÉ 12 \u732b hats", "A [PAD] cat", "  two\nlines "]
    tiny(min_dalle, typed=["size"]).write(tmp_path / "bundle", locate(str(min_dalle)), dtype=torch.float32)
    one = open_generator(Bundle.open(tmp_path / "bundle")).generator
    assert one.tokenizer.encode(texts).tolist() == [theirs.encode(text).ids for text in texts]
    assert one.tokenizer.cut("red cat") is None
    theirs.no_truncation()
    theirs.no_padding()
    cut = one.tokenizer.cut(CAPTIONS[1])
    assert (cut.tokens, cut.limit) == (len(theirs.encode(CAPTIONS[1]).ids), 8)
    assert CAPTIONS[1].startswith(cut.seen)
    # and it is sampled by prompts
    pictures = one(["a red apple", "a tower"], [3, 3])
    assert pictures.shape == (2, 3, SIDE, SIDE)
    assert not torch.equal(pictures[0], pictures[1])
    assert one.settings()["top_k"] == 256
    with pytest.raises(UserError, match="candidates=4 need a CLIP that ranks them: write 1"):
        one.with_options(candidates=4)


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("vocab.json", lambda text: text.replace("[PAD]", "<pad>"), r"no id in 0 to 63 for '\[PAD\]'"),
        ("vocab.json", lambda text: text.replace(":5,", ":64,"), "no id in 0 to 63 for "),
        ("merges.txt", lambda text: text + "q q\n", "no id in 0 to 63 for 'q'"),
        ("merges.txt", lambda text: text + "q\n", "the merges are damaged"),
        ("merges.txt", None, r"merges.txt is missing"),
    ],
)
def test_a_damaged_vocabulary_of_min_dalle_is_refused(tiny, min_dalle, file, change, sentence):
    path = min_dalle / "tokenizer" / f"bpe-16k-{file}"
    text = path.read_text()
    path.unlink()
    if change is not None:
        path.write_text(change(text))
    with pytest.raises(UserError, match=sentence):
        tiny(min_dalle, typed=["size"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """CLIP-GEN's two files beside a tiny CLIP with CLIP's vocabulary."""
    towers = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(towers | {"quick_gelu": True}))
    monkeypatch.setattr(code_networks, "CLIP_MODEL", str(tmp_path / "tiny.json"))
    folder = tmp_path / "clip-gen"
    folder.mkdir()
    saved(random(Prefix()), folder / "gpt_coco.pt")
    saved(random(Vqgan()), folder / "vqgan_coco.pt")
    clip = open_clip.CLIP(**{k: dict(v) if isinstance(v, dict) else v for k, v in towers.items()})
    torch.save(random(clip).state_dict(), folder / code_networks.CLIP_FILE)
    return folder


def test_clip_gens_folder_generates_pictures(tiny, folder, tmp_path):
    tiny(folder, typed=["size"]).write(tmp_path / "bundle", locate(str(folder)), dtype=torch.float16)
    one = open_generator(Bundle.open(tmp_path / "bundle")).generator
    assert one.settings().items() >= {"top_k": 500, "top_p": 0.95}.items()
    assert one(["a tower"], [3]).shape == (1, 3, one.size, one.size)


def test_clip_gens_folder_without_its_clip_or_with_two_networks_is_refused(tiny, folder):
    (folder / code_networks.CLIP_FILE).rename(folder / "clip.pt")
    with pytest.raises(UserError, match=r"lacks ViT-B-32\.pt: put OpenAI's file there"):
        tiny(folder)
    saved(random(Prefix()), folder / "gpt_other.pt")
    with pytest.raises(UserError, match=r"has 2 files gpt_\*\.pt"):
        tiny(folder)
