"""Facts about files of weights: what is damaged, forged or too large is refused before it is read."""

import json
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.exchange.imported import Fit
from ldm.exchange.keymap import rename
from ldm.exchange.weights import Inert, Weights, module_tensors

SPEC = {"_target_": "ldm.models.blocks.Downsample", "channels": 3, "pad_all_around": True}
RULES = [rename("down.*", "conv.*")]
UNET = "unet/diffusion_pytorch_model.safetensors"


def state() -> dict[str, torch.Tensor]:
    return {"down.weight": torch.randn(3, 3, 3, 3), "down.bias": torch.randn(3)}


def fit(path, **options) -> Fit:
    return Fit(spec=SPEC, weights=Weights(path), rules=RULES, **options)


def forged(path, header: object, body: bytes = b"", length: int | None = None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_what_fits_is_read_to_the_bit(tmp_path, form):
    theirs, path = state(), tmp_path / "weights"
    save_file(theirs, path) if form == "safetensors" else torch.save(theirs, path)
    made = fit(path)
    made.check()
    assert all(
        torch.equal(made.part().state[f"conv.{name}"], theirs[f"down.{name}"]) for name in ("weight", "bias")
    )


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_an_outline_reads_no_weight(tmp_path, form):
    path = tmp_path / "weights"
    save_file(state(), path) if form == "safetensors" else torch.save(state(), path)
    outline = Weights(path).outline
    assert {name: tuple(tensor.shape) for name, tensor in outline.items()} == {
        "down.weight": (3, 3, 3, 3),
        "down.bias": (3,),
    }
    assert all(tensor.is_meta for tensor in outline.values())


def test_a_terabyte_that_does_not_fit_is_refused_unread(tmp_path):
    size = 2**40
    header = {"down.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    path = forged(tmp_path / "weights.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)  # a hole: it takes no disk
    with pytest.raises(ValueError, match=r"missing conv\.bias; shape of conv\.weight is \(274877906944,\)"):
        fit(path).check()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        {"down.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}},
        {"down.bias": {"dtype": "F32", "shape": [3], "data_offsets": [-12, 0]}},
        {"down.bias": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}},
        {"down.bias": {"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]}},
        {"down.bias": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 12]}},
        {"down.bias": {"dtype": "Q9", "shape": [3], "data_offsets": [0, 12]}},
        {"down.bias": {"dtype": "F32", "shape": [3]}},
        {"down.bias": 3},
        {"__metadata__": {"ldm": 3}, "down.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
        {
            "down.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "down.weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        },
    ],
    ids=range(14),
)
def test_a_forged_header_is_refused(tmp_path, header):
    with pytest.raises(ValueError, match="neither a whole safetensors file nor a zip"):
        fit(forged(tmp_path / "weights.safetensors", header, bytes(12))).check()


def test_a_file_of_twenty_thousand_tensors_is_refused_by_their_number(tmp_path):
    header = {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
    with pytest.raises(ValueError, match="has 20000 tensors, the limit for a network is 16384"):
        fit(forged(tmp_path / "weights.safetensors", header, b"")).check()


@pytest.mark.parametrize("length", [0, 7, 2**27, 2**40, 2**63 + 1])
def test_a_forged_length_of_the_header_is_refused(tmp_path, length):
    header = {"down.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
    with pytest.raises(ValueError, match="neither a whole safetensors file"):
        fit(forged(tmp_path / "weights.safetensors", header, bytes(12), length=length)).check()


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, form):
    path = tmp_path / "weights"
    save_file(state(), path) if form == "safetensors" else torch.save(state(), path)
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"weights"):
            fit(path).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_weight_that_is_no_number_is_named(tmp_path, form, value):
    theirs, path = state(), tmp_path / "weights"
    theirs["down.bias"][1] = value
    save_file(theirs, path) if form == "safetensors" else torch.save(theirs, path)
    with pytest.raises(ValueError, match=r"conv\.bias holds NaN or Inf"):
        fit(path).part()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_are_floats(tmp_path, dtype):
    torch.save(state() | {"down.bias": torch.ones(3, dtype=dtype)}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"conv\.bias is torch\.\w+, expected floats"):
        fit(tmp_path / "weights").check()


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    """A stride of 0 makes 2**40 numbers of one."""
    torch.save({"down.weight": torch.ones(1).expand(2**40)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="claim 4398046511104 bytes, more than the file has"):
        fit(tmp_path / "weights").check()


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save(state(), tmp_path / "plain")
    with (
        zipfile.ZipFile(tmp_path / "plain") as source,
        zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match=r"its entry plain/data\.pkl is compressed"):
        fit(tmp_path / "packed").check()


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """The directory of a zip may point at one place many times."""
    torch.save(state(), tmp_path / "weights")
    content = bytearray((tmp_path / "weights").read_bytes())
    with zipfile.ZipFile(tmp_path / "weights") as archive:
        (entry,) = (info for info in archive.infolist() if info.filename == "weights/data/0")
    place = content.rindex(entry.filename.encode()) - 46 + 20  # compressed and real size in the directory
    content[place : place + 8] = struct.pack("<II", 2**30, 2**30)
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match="its entries claim 1073"):
        fit(tmp_path / "weights").check()


def test_a_module_tree_that_holds_itself_ends(tmp_path):
    tree = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    torch.jit.save(tree, tmp_path / "tree.pt")
    assert set(Weights(tmp_path / "tree.pt").outline) == {"0.weight", "0.bias"}
    root = Inert()
    root.state = {"again": root, "twice": root, "weight": torch.ones(2)}
    assert [name for name, _ in module_tensors(root)] == ["weight"]


@pytest.mark.parametrize("content", [[torch.ones(3)], {"a": 3}, {3: torch.ones(3)}, {}, torch.ones(3), None])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights")
    with pytest.raises(ValueError, match="expected named tensors"):
        fit(tmp_path / "weights").check()


def test_a_transposed_tensor_is_named(copied, tiny):
    theirs = load_file(copied / UNET)
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"
    save_file(theirs | {name: theirs[name].T.contiguous()}, copied / UNET)
    with pytest.raises(ValueError, match=r"shape of middle\.0\.transformer\.blocks\.0\.ff\.out\.weight"):
        tiny(copied)


def test_keys_and_values_of_unequal_sizes_do_not_make_up_for_each_other(copied, tiny):
    theirs = load_file(copied / UNET)
    block = "mid_block.attentions.0.transformer_blocks.0.attn2"
    keys, values = theirs[f"{block}.to_k.weight"], theirs[f"{block}.to_v.weight"]
    moved = {f"{block}.to_k.weight": keys[1:].clone(), f"{block}.to_v.weight": torch.cat([values, keys[:1]])}
    save_file(theirs | moved, copied / UNET)
    with pytest.raises(ValueError, match=r"shapes \(63, 16\), \(65, 16\) do not make .*cross_attention\.kv"):
        tiny(copied)


def test_nothing_is_read_before_everything_fits(copied, tiny, monkeypatch):
    """The U-Net is whole and the autoencoder is not: the U-Net is never loaded."""
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    theirs = load_file(path)
    del theirs["decoder.conv_out.bias"]
    save_file(theirs, path)
    read = []
    monkeypatch.setattr(Weights, "load", lambda self: read.append(self.path))
    with pytest.raises(ValueError, match=r"missing decoder\.conv_out\.bias"):
        tiny(copied)
    assert read == []
