"""Makes qk_models.safetensors: queries and keys of two random models, captured as the guide says, and the relevance of the
maps that the same models give under eager attention.

Run once, with torch 2.15, transformers 5.24 and timm 1.0.31: `python qk_models.py`.
"""

import pathlib
import re

import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

HERE = pathlib.Path(__file__).parent
GUIDE = HERE.parents[1] / "src/guide/queries_keys.md"


def sharpen(model, parts):
    """Random weights give maps that are almost uniform, in which a fault would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and any(part in name for part in parts):
                parameter.mul_(12)


def relevance(maps):
    """Row 0 of the rollout, [batch, tokens], in f64."""
    rows = torch.zeros(maps[0].shape[0], 1, maps[0].shape[-1], dtype=torch.float64)
    rows[:, :, 0] = 1
    for layer in reversed(maps):
        rows = 0.5 * (rows @ layer.double().mean(1) + rows)
    return rows[:, 0]


def of_bert(captured):
    """A padded batch through transformers."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 96}

    def bert(attention):
        config = BertConfig(vocab_size=100, max_position_embeddings=40, **sizes)
        return BertModel._from_config(config, attn_implementation=attention).eval()

    eager, model = bert("eager"), bert("sdpa_captured")
    sharpen(eager, ["query", "key"])
    model.load_state_dict(eager.state_dict())
    mask = (torch.arange(24) < torch.tensor([[24], [17]])).long()
    batch = {"input_ids": torch.randint(0, 100, (2, 24)), "attention_mask": mask}
    with torch.no_grad():
        model(**batch)
        maps = eager(**batch, output_attentions=True).attentions
    calls = captured["calls"]
    assert len(calls) == len(maps) and all(call["mask"] is not None for call in calls)
    return calls, {"attention_mask": mask, "relevance": relevance(maps)}


def of_vit(captured):
    """Two images through timm."""
    torch.manual_seed(2)
    sizes = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    sharpen(model, ["qkv"])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), captured["captured_attention"]() as calls:
        model(images)
    maps = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        model(images)
    assert len(calls) == len(maps)
    return calls, {"relevance": relevance(maps)}


def main():
    captured = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(code, captured)
    tensors = {}
    for name, of_model in {"bert": of_bert, "vit": of_vit}.items():
        calls, others = of_model(captured)
        assert all(call["scale"] in (None, call["query"].shape[-1] ** -0.5) for call in calls)
        for tensor, value in {**captured["queries_and_keys"](calls), **others}.items():
            tensors[f"{name}/{tensor}"] = value
    save_file(tensors, HERE / "qk_models.safetensors")


if __name__ == "__main__":
    main()
