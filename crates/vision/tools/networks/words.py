"""CLIP and BLIP through transformers, the safety checker through diffusers, with those programs' own preparation of pictures."""
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from transformers import BlipConfig, BlipForConditionalGeneration, CLIPConfig, CLIPModel
from transformers import generation
from transformers.models.blip.image_processing_blip import BlipImageProcessor
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from case import Case, cut, twice
from weights import fill, kept, renamed

LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
#: A byte of 255, divided by the least deviation of a colour: preparations may round one step apart.
STEP = 1.01 / 255 / 0.26


def pixels(processor, picture):
    return processor(picture.numpy(), return_tensors="pt")["pixel_values"].float()


def clip_config(vision, text, patch, dimension):
    return CLIPConfig(
        projection_dim=dimension,
        vision_config=dict(vision, patch_size=patch, projection_dim=dimension),
        text_config=dict(text, vocab_size=49408, projection_dim=dimension, eos_token_id=49407, bos_token_id=49406),
    )


def openai_keys(tensors):
    """The layout of OpenAI's own files."""
    layer = (
        (r"encoder\.layers\.", "transformer.resblocks."), (r"\.self_attn\.out_proj\.", ".attn.out_proj."), (r"\.layer_norm(\d)\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."), (r"\.mlp\.fc2\.", ".mlp.c_proj."), (r"^vision_model\.", "visual."), (r"^text_model\.", ""),
        (r"embeddings\.class_embedding$", "class_embedding"), (r"embeddings\.patch_embedding\.", "conv1."),
        (r"embeddings\.position_embedding\.weight$", "positional_embedding"), (r"embeddings\.token_embedding\.", "token_embedding."),
        (r"\.pre_layrnorm\.", ".ln_pre."), (r"\.post_layernorm\.", ".ln_post."), (r"final_layer_norm\.", "ln_final."),
    )  # fmt: skip
    made = renamed(tensors, *layer)
    for key in [key for key in made if ".self_attn.q_proj." in key]:
        parts = [made.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        end = key.rpartition(".")[2]
        made[key.replace(f"self_attn.q_proj.{end}", f"attn.in_proj_{end}")] = torch.cat(parts)
    made["visual.proj"] = made.pop("visual_projection.weight").t().contiguous()
    made["text_projection"] = made.pop("text_projection.weight").t().contiguous()
    return made


def clip(config, keys=lambda tensors: tensors):
    net = fill(CLIPModel(config))
    net.logit_scale.fill_(4.6052)
    processor = CLIPImageProcessor()
    picture = cut("coffee", 20, 10, 501, 377)
    texts = [[49406, 320, 1125, 539, 320, 2368, 49407], [49406, 49407], [49406] + list(range(1000, 1075)) + [49407]]
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    x = pixels(processor, picture)

    def run(net, x):
        seen = net.visual_projection(net.vision_model(pixel_values=x).pooler_output)
        said = [net.text_projection(net.text_model(input_ids=torch.tensor([ids])).pooler_output) for ids in texts]
        return {"image": unit(seen), "texts": unit(torch.cat(said))}

    given = {"picture": picture, "given_pixels": x} | {f"ids{n}": torch.tensor(ids) for n, ids in enumerate(texts)}
    tensors = keys(kept(net))
    expected, rounded = twice(net, run, x)
    expected |= {"pixels": x, "scale": torch.tensor([100.0])}
    return Case("clip", tensors, given, expected, rounded, {"pixels": STEP, "scale": 0.01})


def safety(special):
    config = clip_config(LARGE, BASE, 14, 768)
    net = fill(StableDiffusionSafetyChecker(config))
    x = pixels(CLIPImageProcessor(), cut("coffee", 20, 10, 501, 377))
    # The thresholds stand a little above or below what is seen, and one special concept lowers all others'.
    def cosines(net, x):
        place = net.visual_projection(net.vision_model(x)[1])
        return {"special": cosine_distance(place, net.special_care_embeds)[0], "concepts": cosine_distance(place, net.concept_embeds)[0]}

    seen = cosines(net, x)
    net.special_care_embeds_weights.copy_(seen["special"] + torch.tensor([0.02, 0.02, -0.02 if special else 0.02]))
    net.concept_embeds_weights.copy_(seen["concepts"] + 0.005)
    _, flagged = net(x, [cut("coffee", 0, 0, 8, 8).numpy()])
    assert flagged == [special]
    tensors = kept(net)
    expected, rounded = twice(net, cosines, x)
    expected["flagged"] = torch.tensor(flagged)
    return Case("safety", tensors, {"given_pixels": x}, expected, rounded)


def salesforce_keys(tensors):
    """The layout of the authors' own files."""
    return renamed(
        tensors,
        (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"), (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."), (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
        (r"^vision_model\.encoder\.layers\.", "visual_encoder.blocks."), (r"\.self_attn\.qkv\.", ".attn.qkv."), (r"\.self_attn\.projection\.", ".attn.proj."),
        (r"\.layer_norm(\d)\.", r".norm\1."), (r"^", "model."),
    )  # fmt: skip


def blip(vision, is_salesforce):
    eps = 1e-6 if is_salesforce else 1e-5
    text = dict(BASE, vocab_size=30524, encoder_hidden_size=vision["hidden_size"], max_position_embeddings=512)
    net = BlipForConditionalGeneration(BlipConfig(vision_config=dict(vision, image_size=384, layer_norm_eps=eps), text_config=text))
    fill(net)
    # Ends have a chance to come.
    net.text_decoder.cls.predictions.bias[102] += 3.0
    picture = cut("coffee", 20, 10, 501, 377)
    processor = BlipImageProcessor(size=dict(height=384, width=384))
    x = pixels(processor, picture)
    begin = torch.tensor([[30522, 1037, 3861, 1997]])  # "a picture of"
    rules = generation.LogitsProcessorList(
        [
            generation.RepetitionPenaltyLogitsProcessor(1.1), generation.MinLengthLogitsProcessor(5, 102, device="cpu"),
            generation.TopKLogitsWarper(50), generation.TopPLogitsWarper(0.9),
        ]
    )  # fmt: skip

    def run(net, x):
        seen = net.vision_model(pixel_values=x).last_hidden_state
        scores = net.text_decoder(input_ids=begin, encoder_hidden_states=seen).logits[:, -1]
        return {"seen": seen, "scores": scores[0], "chances": rules(begin, scores.clone()).softmax(-1)[0]}

    def said(n_beams, penalty, shortest):
        seen = net.vision_model(pixel_values=x).last_hidden_state
        return net.text_decoder.generate(
            input_ids=begin, encoder_hidden_states=seen, encoder_attention_mask=torch.ones(seen.shape[:-1]), max_length=20,
            min_length=shortest, num_beams=n_beams, repetition_penalty=penalty, do_sample=False, eos_token_id=102, pad_token_id=0, bos_token_id=30522,
        )[0]  # fmt: skip

    tensors = kept(net)
    tokens = {"greedy": said(1, 1.0, 5), "beams": said(3, 1.0, 5), "penalised": said(3, 1.4, 8)}
    expected, rounded = twice(net, run, x)
    given = {"picture": picture, "given_pixels": x, "begin": begin[0]}
    tensors = salesforce_keys(tensors) if is_salesforce else tensors
    return Case("blip", tensors, given, expected | tokens | {"pixels": x}, rounded, {"pixels": STEP})


CASES = {
    "CLIP ViT-L/14": lambda: clip(clip_config(LARGE, BASE, 14, 768)),
    "CLIP ViT-B/32, OpenAI's keys": lambda: clip(clip_config(BASE, dict(BASE, hidden_size=512, intermediate_size=2048, num_attention_heads=8), 32, 512), openai_keys),
    "Safety checker, nothing special": lambda: safety(False),
    "Safety checker, a special concept": lambda: safety(True),
    "BLIP base": lambda: blip(BASE, False),
    "BLIP large, Salesforce's keys": lambda: blip(LARGE, True),
}
