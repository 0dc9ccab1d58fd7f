"""Facts about VQ-Diffusion's weights of others: what diffusers predicts and decodes, every key used once."""

import json

import diffusers
import pytest
import torch
from diffusers import VQDiffusionPipeline, VQDiffusionScheduler
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
    LearnedClassifierFreeSamplingEmbeddings,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.exchange.folder import write_vocabulary
from ldm.exchange.importing import locate
from ldm.generators.generator import open_generator

TEXT = {
    **{"vocab_size": 640, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "max_position_embeddings": 16},
    **{"bos_token_id": 638, "eos_token_id": 639, "pad_token_id": 639},
}


def random(net):
    """Biases, gains and tables away from their first values."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


@pytest.fixture(scope="module")
def pipeline(tokenizer, tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("vq")
    write_vocabulary(tokenizer, folder / "own")
    empty = LearnedClassifierFreeSamplingEmbeddings(learnable=True, hidden_size=16, length=16)
    return VQDiffusionPipeline(
        vqvae=random(
            diffusers.VQModel(
                block_out_channels=(32, 64),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                layers_per_block=1,
                latent_channels=8,
                num_vq_embeddings=12,
                vq_embed_dim=8,
                norm_num_groups=8,
            )
        ),
        transformer=random(
            diffusers.Transformer2DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                cross_attention_dim=16,
                attention_bias=True,
                sample_size=4,
                num_vector_embeds=13,
                num_embeds_ada_norm=10,
                norm_type="ada_norm",
                activation_fn="geglu-approximate",
            )
        ),
        text_encoder=random(CLIPTextModel(CLIPTextConfig(**TEXT))),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "own"),
        scheduler=VQDiffusionScheduler(num_vec_classes=13, num_train_timesteps=10),
        learned_classifier_free_sampling_embeddings=random(empty),
    )


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_pipeline_of_diffusers_predicts_and_decodes_the_same(pipeline, saved, bundle_of):
    bundle = Bundle.open(bundle_of(saved))
    assert bundle.names == ["backbone", "image_tokenizer", "text_encoder"]
    generator = open_generator(bundle).generator
    assert generator.settings() == {"steps": 10, "truncation": 1.0, "scale": 5.0}
    assert generator.size == 8
    prompts = ["a cat", "red apple"]
    theirs = pipeline._encode_prompt(prompts, num_images_per_prompt=1, do_classifier_free_guidance=True)
    context = generator.net.context(generator.texts.states(prompts))
    both = torch.cat([generator.net.empty.expand_as(context), context])
    torch.testing.assert_close(both, theirs, rtol=0, atol=1e-5)
    x = torch.randint(13, (4, 16))
    with torch.no_grad():
        expected = pipeline.transformer(x, encoder_hidden_states=theirs, timestep=torch.tensor(6)).sample
        found = generator.net(x, torch.full((4,), 7), both).log_softmax(dim=-1).transpose(1, 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        codes = torch.randint(12, (2, 16))
        values = pipeline.vqvae.quantize.get_codebook_entry(codes, shape=(2, 4, 4, 8))
        picture = pipeline.vqvae.decode(values, force_not_quantize=True).sample
    torch.testing.assert_close(generator.codes.net.decode(codes), picture, rtol=0, atol=1e-5)
    assert generator(prompts, [0, 1]).shape == (2, 3, 8, 8)


def test_what_our_system_lacks_is_refused(saved, tiny):
    def changed(file, **values):
        path = saved / file
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | values))
        with pytest.raises(UserError) as caught:
            tiny(saved)
        path.write_text(before)
        return str(caught.value)

    assert "alpha_cum_end=0.5" in changed("scheduler/scheduler_config.json", alpha_cum_end=0.5)
    assert "num_train_timesteps=9" in changed("scheduler/scheduler_config.json", num_train_timesteps=9)
    assert "activation_fn='geglu'" in changed("transformer/config.json", activation_fn="geglu")
    assert "no learned empty text" in changed(
        "learned_classifier_free_sampling_embeddings/config.json", learnable=False
    )
    assert "The weights do not fit" in changed("transformer/config.json", num_layers=3)


def released(pipeline):
    """The names of the released code for the pipeline's weights, as in the EMA of its files."""
    names = {
        "latent_image_embedding.": "transformer.content_emb.",
        **{"transformer_blocks.": "transformer.blocks.", "norm_out.": "transformer.to_logits.0."},
        **{"norm1.": "ln1.", "norm2.": "ln1_1.", "norm3.": "ln2.", "to_out.0.": "proj."},
        **{"to_q.": "query.", "to_k.": "key.", "to_v.": "value."},
        **{"ff.net.0.proj.": "mlp.0.", "ff.net.2.": "mlp.2."},
    }
    state = {}
    for name, tensor in pipeline.transformer.state_dict().items():
        other = f"transformer.to_logits.1.{name[4:]}" if name.startswith("out.") else name
        for theirs, ours in names.items():
            other = other.replace(theirs, ours)
        state[other] = tensor
    embeddings = pipeline.learned_classifier_free_sampling_embeddings.embeddings
    beside = {"log_at": torch.zeros(10), "Lt_history": torch.zeros(10), "Lt_count": torch.zeros(10)}
    beside |= {f"transformer.blocks.{n}.attn2.mask": torch.ones(1, 1, 16, 16) for n in range(2)}
    beside["condition_emb.token_embedding.weight"] = torch.zeros(3, 2)
    return state | {"empty_text_embed": embeddings.detach().double()} | beside


@pytest.mark.parametrize("whole", [False, True], ids=["an EMA", "a whole model"])
def test_every_key_of_a_released_file_is_used_once(pipeline, saved, tiny, tmp_path, monkeypatch, whole):
    monkeypatch.setattr("ldm.exchange.code_networks.HEADS", 2)
    state = released(pipeline)
    if whole:
        state = {f"transformer.{name}": tensor for name, tensor in state.items()}
        state["content_codec.enc.quantize.embed.weight"] = torch.zeros(3, 2)
    torch.save({"model": state, "iteration": 3}, tmp_path / "coco.pth")
    found, expected = tiny(tmp_path / "coco.pth"), tiny(saved)
    assert found.parts["backbone"].spec == expected.parts["backbone"].spec
    for name, tensor in expected.parts["backbone"].state.items():
        torch.testing.assert_close(found.parts["backbone"].state[name].float(), tensor)
    assert found.settings["process"] == expected.settings["process"]
    assert "number of heads" in found.notes[0]
    bundle = Bundle.open(
        found.write(tmp_path / "bundle", locate(str(tmp_path / "coco.pth")), dtype=torch.float32)
    )
    with pytest.raises(UserError, match="has no image_tokenizer; it has backbone"):
        open_generator(bundle)
    state[f"{'transformer.' * whole}transformer.blocks.0.attn3.weight"] = torch.zeros(2, 2)
    torch.save({"model": state}, tmp_path / "strange.pth")
    with pytest.raises(UserError, match=r"unexpected transformer\.blocks\.0\.attn3\.weight"):
        tiny(tmp_path / "strange.pth")
